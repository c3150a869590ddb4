// SPDX-License-Identifier: Apache-2.0
import CEdgeslim
import Foundation

/// A model's files: those of the package, and the weights, decoded once into a folder of the app that isn't backed up.
struct ModelFiles {
    let model: URL
    let tokenizer: URL?
    let manifest: Manifest

    /// Finds the weights decoded, or decodes them. They appear whole or not at all, and are compared with their hash at
    /// each start. Other versions of the model go after that.
    static func prepare(package: URL) throws -> ModelFiles {
        let manifest = try Manifest.read(package.appendingPathComponent("manifest.json"))
        guard let weights = manifest.files["weights.bin"], let graph = manifest.files["model.onnx"] else {
            throw EdgeslimError.package("manifest.json lacks model.onnx or weights.bin")
        }
        let home = try home(of: manifest.name)
        let version = String(graph.sha256.prefix(16) + weights.sha256.prefix(16))
        guard version.range(of: "^[0-9a-f]{32}$", options: .regularExpression) != nil else {
            throw EdgeslimError.package("manifest.json: a SHA-256 isn't one")
        }
        let folder = home.appendingPathComponent(version)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        let model = folder.appendingPathComponent("model.onnx")
        let data = try Data(contentsOf: package.appendingPathComponent("model.onnx"), options: .mappedIfSafe)
        guard UInt64(data.count) == graph.bytes else {
            throw EdgeslimError.package("model.onnx has \(data.count) bytes, manifest.json says \(graph.bytes)")
        }
        let written = try? model.resourceValues(forKeys: [.fileSizeKey]).fileSize
        if written != data.count {  // the folder's name is a hash of it, and it appears whole or not at all
            try data.write(to: model, options: .atomic)
        }
        try decode(
            package.appendingPathComponent("weights.esz"), to: folder.appendingPathComponent("weights.bin"),
            bytes: weights.bytes)
        for other in try FileManager.default.contentsOfDirectory(at: home, includingPropertiesForKeys: nil)
        where other.lastPathComponent != version {
            try? FileManager.default.removeItem(at: other)
        }
        return ModelFiles(model: model, tokenizer: tokenizer(of: manifest, in: package), manifest: manifest)
    }

    private static func home(of name: String) throws -> URL {
        let support = try FileManager.default.url(
            for: .applicationSupportDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        var home = support.appendingPathComponent("edgeslim").appendingPathComponent(name)
        try FileManager.default.createDirectory(at: home, withIntermediateDirectories: true)
        var values = URLResourceValues()
        values.isExcludedFromBackup = true
        try home.setResourceValues(values)
        return home
    }

    private static func decode(_ container: URL, to target: URL, bytes: UInt64) throws {
        var error = esz_load_error()
        let status = esz_load_to_file(container.path, target.path, bytes, &error)
        guard status == ESZ_LOAD_OK || status == ESZ_LOAD_FOUND else {
            throw EdgeslimError.decode(String(cString: esz_load_status_text(status)))
        }
    }

    private static func tokenizer(of manifest: Manifest, in package: URL) -> URL? {
        guard let folder = manifest.tokenizer?.folder, manifest.files["\(folder)/tokenizer.etk"] != nil else {
            return nil
        }
        return package.appendingPathComponent(folder).appendingPathComponent("tokenizer.etk")
    }
}

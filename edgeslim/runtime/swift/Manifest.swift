// SPDX-License-Identifier: Apache-2.0
import Foundation

/// The part of manifest.json that the loader needs.
struct Manifest: Decodable {
    struct Entry: Decodable {
        let bytes: UInt64
        let sha256: String
    }

    struct Task: Decodable {
        let task: String
        let output: String?
        let pooling: String?
        let normalize: Bool?
        let labels: [String]?
        let preprocessing: Preprocessing?
    }

    struct Preprocessing: Decodable {
        let size: [Int]
        let mode: String
        let shortestEdge: Int?
        let resample: String
        let channels: String
        let scale: Float
        let mean: [Float]
        let std: [Float]
        let layout: String
        let dtype: String
    }

    struct TokenizerEntry: Decodable {
        let folder: String
        let maxLength: Int
        let pad: Bool?
    }

    struct Signature: Decodable {
        struct Input: Decodable {
            let name: String
        }

        let inputs: [Input]
    }

    let schema: Int
    let name: String
    let task: Task
    let signature: Signature
    let tokenizer: TokenizerEntry?
    let files: [String: Entry]

    var inputs: [String] { signature.inputs.map { $0.name } }

    private static let maxBytes = 1 << 20

    static func read(_ url: URL) throws -> Manifest {
        let data = try Data(contentsOf: url)
        guard data.count <= maxBytes else {
            throw EdgeslimError.package("manifest.json has \(data.count) bytes, at most \(maxBytes) are read")
        }
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        let manifest = try decoder.decode(Manifest.self, from: data)
        guard manifest.schema == 1 else {
            throw EdgeslimError.package("manifest.json: schema is \(manifest.schema), this loader reads 1")
        }
        let isName = manifest.name.range(of: "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", options: .regularExpression) != nil
        guard isName, manifest.files["model.onnx"] != nil, manifest.files["weights.bin"] != nil else {
            throw EdgeslimError.package("manifest.json lacks a name, model.onnx or weights.bin")
        }
        return manifest
    }
}

// SPDX-License-Identifier: Apache-2.0
import Foundation

/// Who executes nodes; what a provider doesn't take falls back to the CPU.
public enum Provider {
    case cpu
    case xnnpack
    case coreML
}

/// How a model is run. The int8 forms that edgeslim builds are made for the CPU provider's kernels.
public struct RunOptions {
    /// How many threads one operator may use; 0 leaves the choice to ONNX Runtime.
    public var threads: Int
    public var provider: Provider

    public init(threads: Int = 0, provider: Provider = .cpu) {
        self.threads = threads
        self.provider = provider
    }
}

/// What a classifier says of one text or picture.
public struct Classification {
    /// The likeliest class, and its place among the logits.
    public let label: String
    public let index: Int
    /// Of each class, in order; they sum to 1.
    public let probabilities: [Float]
}

/// What can go wrong.
public enum EdgeslimError: Error {
    /// A file of the package is missing, or isn't what manifest.json says.
    case package(String)
    /// The weights are damaged, or there is no room for them: the decoder's words.
    case decode(String)
    /// ONNX Runtime refuses the model or a run.
    case runtime(String)
    /// What was given doesn't fit the model.
    case input(String)
}

/// A packaged model, opened: texts or pictures in, vectors or classes out. Several threads may use one; runs follow each
/// other.
public final class EdgeslimModel {
    private let files: ModelFiles
    private let options: RunOptions
    private let makeSession: (URL, RunOptions) throws -> ModelSession
    private let lock = NSLock()
    private var session: ModelSession?

    /// The tokenizer; nil where the package has none that the loader knows.
    public let tokenizer: Tokenizer?

    /// Opens a package's folder. The weights are decoded once, to a folder that isn't backed up.
    public convenience init(package: URL, options: RunOptions = RunOptions()) throws {
        try self.init(package: package, options: options) { model, options in
            try OrtModelSession(model: model, options: options)
        }
    }

    /// For tests: another runtime.
    init(package: URL, options: RunOptions, makeSession: @escaping (URL, RunOptions) throws -> ModelSession) throws {
        files = try ModelFiles.prepare(package: package)
        self.options = options
        self.makeSession = makeSession
        if let file = files.tokenizer {
            tokenizer = try Tokenizer(file: Data(contentsOf: file, options: .mappedIfSafe))
        } else {
            tokenizer = nil
        }
        try use { _ in }
    }

    /// A text's vector, pooled and scaled as the model wants it. A long text is cut at the model's greatest length.
    public func embed(_ text: String) throws -> [Float] {
        let (output, mask) = try run(text)
        return try Pooling.pool(output, mask: mask, task: files.manifest.task)
    }

    /// A vector for each text.
    public func embed(_ texts: [String]) throws -> [[Float]] {
        try texts.map { try embed($0) }
    }

    /// A text's class.
    public func classify(_ text: String) throws -> Classification {
        try decide(run(text).output)
    }

    /// A picture's class. The picture is resized, cut and scaled as the model was calibrated.
    ///
    /// - Parameter pixels: 0xAARRGGBB row by row; transparency is left out.
    public func classify(pixels: [UInt32], width: Int, height: Int) throws -> Classification {
        guard let preprocessing = files.manifest.task.preprocessing, files.manifest.inputs.count == 1 else {
            throw EdgeslimError.input("this model takes no picture: its task is \(files.manifest.task.task)")
        }
        let picture = try ImageInput(preprocessing).prepare(pixels: pixels, width: width, height: height)
        let inputs = [files.manifest.inputs[0]: picture]
        return try decide(use { try $0.run(inputs: inputs, output: files.manifest.task.output) })
    }

    /// Closes the session, and with it nearly all of the memory; the next use opens it again. For memory warnings.
    public func release() {
        lock.lock()
        defer { lock.unlock() }
        session = nil
    }

    private func use<T>(_ body: (ModelSession) throws -> T) throws -> T {
        lock.lock()
        defer { lock.unlock() }
        let opened = try session ?? makeSession(files.model, options)
        session = opened
        return try body(opened)
    }

    private func run(_ text: String) throws -> (output: Tensor, mask: [Int64]) {
        guard let tokenizer = tokenizer, let entry = files.manifest.tokenizer else {
            throw EdgeslimError.input("this package has no tokenizer that the loader knows")
        }
        var ids = try tokenizer.encode(text, maxLength: entry.maxLength)
        var mask = [Int64](repeating: 1, count: ids.count)
        if entry.pad == true {
            let missing = entry.maxLength - ids.count
            ids += [Int64](repeating: max(0, tokenizer.padId ?? 0), count: missing)
            mask += [Int64](repeating: 0, count: missing)
        }
        var inputs: [String: Tensor] = [:]
        for name in files.manifest.inputs {
            switch name {
            case "input_ids": inputs[name] = Tensor(longs: ids, shape: [1, ids.count])
            case "attention_mask": inputs[name] = Tensor(longs: mask, shape: [1, ids.count])
            case "token_type_ids":
                inputs[name] = Tensor(longs: [Int64](repeating: 0, count: ids.count), shape: [1, ids.count])
            default: throw EdgeslimError.input("the model's input \(name) comes from no tokenizer")
            }
        }
        return (try use { try $0.run(inputs: inputs, output: files.manifest.task.output) }, mask)
    }

    private func decide(_ output: Tensor) throws -> Classification {
        let probabilities = Pooling.probabilities(output.floats)
        let labels = files.manifest.task.labels ?? []
        guard let best = probabilities.indices.max(by: { probabilities[$0] < probabilities[$1] }) else {
            throw EdgeslimError.runtime("the model gives no logits")
        }
        guard labels.isEmpty || labels.count == probabilities.count else {
            throw EdgeslimError.package("\(labels.count) labels for \(probabilities.count) classes")
        }
        let label = labels.isEmpty ? String(best) : labels[best]
        return Classification(label: label, index: best, probabilities: probabilities)
    }
}

// SPDX-License-Identifier: Apache-2.0
import Foundation
import OnnxRuntimeBindings

/// Values of a model's input or output: of one type, in row-major order.
struct Tensor {
    var floats: [Float] = []
    var longs: [Int64] = []
    var bytes: [UInt8] = []
    let shape: [Int]

    init(floats: [Float], shape: [Int]) {
        self.floats = floats
        self.shape = shape
    }

    init(longs: [Int64], shape: [Int]) {
        self.longs = longs
        self.shape = shape
    }

    init(bytes: [UInt8], shape: [Int]) {
        self.bytes = bytes
        self.shape = shape
    }
}

/// What the loader needs of a runtime.
protocol ModelSession: AnyObject {
    /// Runs the model once; `output` is the one that is wanted, nil for the first.
    func run(inputs: [String: Tensor], output: String?) throws -> Tensor
}

/// ONNX Runtime behind the loader's interface. Nothing else of the loader knows it.
final class OrtModelSession: ModelSession {
    private let environment: ORTEnv
    private let session: ORTSession

    init(model: URL, options: RunOptions) throws {
        environment = try ORTEnv(loggingLevel: .warning)
        let settings = try ORTSessionOptions()
        switch options.provider {
        case .cpu:
            if options.threads > 0 {
                try settings.setIntraOpNumThreads(Int32(options.threads))
            }
        case .xnnpack:
            let xnnpack = ORTXnnpackExecutionProviderOptions()
            xnnpack.intra_op_num_threads = Int32(max(1, options.threads))
            try settings.appendXnnpackExecutionProvider(with: xnnpack)
            try settings.setIntraOpNumThreads(1)
        case .coreML:
            try settings.appendCoreMLExecutionProvider(with: ORTCoreMLExecutionProviderOptions())
        }
        session = try ORTSession(env: environment, modelPath: model.path, sessionOptions: settings)
    }

    func run(inputs: [String: Tensor], output: String?) throws -> Tensor {
        let feed = try inputs.mapValues { try OrtModelSession.value(of: $0) }
        let names = try session.outputNames()
        guard let name = output ?? names.first, names.contains(name) else {
            throw EdgeslimError.runtime("the model has no output \(output ?? "at all")")
        }
        let results = try session.run(withInputs: feed, outputNames: [name], runOptions: nil)
        guard let value = results[name] else {
            throw EdgeslimError.runtime("the model gives no \(name)")
        }
        let info = try value.tensorTypeAndShapeInfo()
        guard info.elementType == .float else {
            throw EdgeslimError.runtime("the output \(name) isn't float32")
        }
        let data = try value.tensorData() as Data
        let floats = data.withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
        return Tensor(floats: floats, shape: info.shape.map { $0.intValue })
    }

    private static func value(of tensor: Tensor) throws -> ORTValue {
        let shape = tensor.shape.map { NSNumber(value: $0) }
        if !tensor.longs.isEmpty {
            return try ORTValue(tensorData: data(of: tensor.longs), elementType: .int64, shape: shape)
        }
        if !tensor.bytes.isEmpty {
            return try ORTValue(tensorData: data(of: tensor.bytes), elementType: .uInt8, shape: shape)
        }
        return try ORTValue(tensorData: data(of: tensor.floats), elementType: .float, shape: shape)
    }

    private static func data<T>(of values: [T]) -> NSMutableData {
        values.withUnsafeBytes { raw in
            raw.baseAddress.map { NSMutableData(bytes: $0, length: raw.count) } ?? NSMutableData()
        }
    }
}

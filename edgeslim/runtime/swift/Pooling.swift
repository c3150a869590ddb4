// SPDX-License-Identifier: Apache-2.0
import Foundation

/// From a model's output to a vector or to probabilities.
enum Pooling {
    /// One text's vector, of hidden states [1, tokens, width] or a vector [1, width].
    static func pool(_ output: Tensor, mask: [Int64], task: Manifest.Task) throws -> [Float] {
        var vector = output.floats
        let pooling = task.pooling ?? "none"
        if output.shape.count == 3 && pooling != "none" {
            let tokens = output.shape[1]
            let width = output.shape[2]
            guard output.shape[0] == 1, tokens == mask.count, output.floats.count == tokens * width else {
                throw EdgeslimError.runtime("the model gives \(tokens) tokens for \(mask.count)")
            }
            if pooling == "cls" {
                vector = Array(output.floats[0..<width])
            } else {
                vector = average(output.floats, mask: mask, width: width)
            }
        }
        guard task.normalize == true else {
            return vector
        }
        let norm = max(sqrt(vector.reduce(0.0) { $0 + Double($1) * Double($1) }), 1e-12)
        return vector.map { Float(Double($0) / norm) }
    }

    private static func average(_ states: [Float], mask: [Int64], width: Int) -> [Float] {
        var sums = [Double](repeating: 0, count: width)
        var count = 0
        for (token, counts) in mask.enumerated() where counts != 0 {
            count += 1
            for place in 0..<width {
                sums[place] += Double(states[token * width + place])
            }
        }
        return sums.map { Float($0 / Double(max(1, count))) }
    }

    /// Softmax of logits; one logit alone is that of the second of two classes.
    static func probabilities(_ logits: [Float]) -> [Float] {
        if logits.count == 1 {
            let second = Float(1 / (1 + exp(-Double(logits[0]))))
            return [1 - second, second]
        }
        let most = Double(logits.max() ?? 0)
        let powers = logits.map { exp(Double($0) - most) }
        let sum = powers.reduce(0, +)
        return powers.map { Float($0 / sum) }
    }
}

// SPDX-License-Identifier: Apache-2.0
import Foundation

/// Weights by distance in pixels of the smaller scale.
enum ResamplingFilter: String {
    case nearest, box, bilinear, hamming, bicubic, lanczos

    var support: Double {
        switch self {
        case .nearest: return 0
        case .box: return 0.5
        case .bilinear, .hamming: return 1
        case .bicubic: return 2
        case .lanczos: return 3
        }
    }

    func weight(_ distance: Double) -> Double {
        let x = abs(distance)
        switch self {
        case .nearest: return 0
        case .box: return distance > -0.5 && distance <= 0.5 ? 1 : 0
        case .bilinear: return x < 1 ? 1 - x : 0
        case .hamming:
            if x == 0 { return 1 }
            return x >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * cos(x * .pi))
        case .bicubic:
            if x < 1 { return (1.5 * x - 2.5) * x * x + 1 }
            return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0
        case .lanczos: return distance >= -3 && distance < 3 ? sinc(distance) * sinc(distance / 3) : 0
        }
    }

    private func sinc(_ x: Double) -> Double {
        x == 0 ? 1 : sin(x * .pi) / (x * .pi)
    }
}

/// Resizing of pictures as Pillow does it: a filter that widens with the reduction, its weights in fixed point, first
/// along the rows and then along the columns, rounded to bytes after each.
enum Resampling {
    private static let precisionBits = 22

    /// `picture`: bytes, [height, width, depth].
    static func resize(
        _ picture: [UInt8], width: Int, height: Int, depth: Int, wide: Int, tall: Int, filter: ResamplingFilter
    ) -> [UInt8] {
        if wide == width && tall == height {
            return picture
        }
        if filter == .nearest {
            return nearest(picture, width: width, height: height, depth: depth, wide: wide, tall: tall)
        }
        var rows = picture
        if wide != width {
            rows = [UInt8](repeating: 0, count: height * wide * depth)
            let weights = (0..<wide).map { taps(filter, place: $0, length: width, size: wide) }
            for y in 0..<height {
                for (x, tap) in weights.enumerated() {
                    for c in 0..<depth {
                        rows[(y * wide + x) * depth + c] = sum(tap) { picture[(y * width + $0) * depth + c] }
                    }
                }
            }
        }
        if tall == height {
            return rows
        }
        var out = [UInt8](repeating: 0, count: tall * wide * depth)
        for y in 0..<tall {
            let tap = taps(filter, place: y, length: height, size: tall)
            for place in 0..<(wide * depth) {
                out[y * wide * depth + place] = sum(tap) { rows[$0 * wide * depth + place] }
            }
        }
        return out
    }

    private static func nearest(
        _ picture: [UInt8], width: Int, height: Int, depth: Int, wide: Int, tall: Int
    ) -> [UInt8] {
        let stepX = Double(width) / Double(wide)
        let stepY = Double(height) / Double(tall)
        var out = [UInt8]()
        out.reserveCapacity(wide * tall * depth)
        var placeY = stepY / 2
        for _ in 0..<tall {
            var placeX = stepX / 2
            for _ in 0..<wide {
                let from = (Int(placeY) * width + Int(placeX)) * depth
                out += picture[from..<(from + depth)]
                placeX += stepX
            }
            placeY += stepY
        }
        return out
    }

    /// The first pixel that counts for a new one, and the weights from there on.
    private static func taps(
        _ filter: ResamplingFilter, place: Int, length: Int, size: Int
    ) -> (first: Int, weights: [Int]) {
        let scale = Double(length) / Double(size)
        let widened = max(scale, 1)
        let centre = (Double(place) + 0.5) * scale
        let support = filter.support * widened
        let first = max(0, Int(centre - support + 0.5))
        let end = min(length, Int(centre + support + 0.5))
        let exact = (first..<end).map { filter.weight((Double($0) - centre + 0.5) * (1 / widened)) }
        let total = exact.reduce(0, +)
        let weights = exact.map { value -> Int in
            let share = (total == 0 ? value : value / total) * Double(1 << precisionBits)
            return Int(share < 0 ? share - 0.5 : share + 0.5)
        }
        return (first, weights)
    }

    private static func sum(_ tap: (first: Int, weights: [Int]), _ pixel: (Int) -> UInt8) -> UInt8 {
        var sum = 1 << (precisionBits - 1)
        for (place, weight) in tap.weights.enumerated() {
            sum += Int(pixel(tap.first + place)) * weight
        }
        return UInt8(max(0, min(255, sum >> precisionBits)))
    }
}

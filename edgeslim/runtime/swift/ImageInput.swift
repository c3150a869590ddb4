// SPDX-License-Identifier: Apache-2.0
import Foundation

/// From a picture to a model's input, as manifest.json says, in the arithmetic of the build: as Pillow resizes.
struct ImageInput {
    private let table: Manifest.Preprocessing
    private let filter: ResamplingFilter
    private let depth: Int
    private let height: Int
    private let width: Int

    init(_ table: Manifest.Preprocessing) throws {
        let depth = table.channels == "rgb" ? 3 : 1
        guard let filter = ResamplingFilter(rawValue: table.resample), table.size.count == 2,
            table.size.allSatisfy({ (1...8192).contains($0) }), table.mean.count == depth, table.std.count == depth
        else {
            throw EdgeslimError.package("manifest.json: preprocessing isn't as edgeslim writes it")
        }
        self.table = table
        self.filter = filter
        self.depth = depth
        height = table.size[0]
        width = table.size[1]
    }

    func prepare(pixels: [UInt32], width pictureWidth: Int, height pictureHeight: Int) throws -> Tensor {
        guard pictureWidth > 0, pictureHeight > 0, pixels.count == pictureWidth * pictureHeight else {
            throw EdgeslimError.input("\(pixels.count) pixels of \(pictureWidth) x \(pictureHeight)")
        }
        var wide = width
        var tall = height
        if table.mode == "crop" {
            let edge = table.shortestEdge ?? max(height, width)
            guard edge >= max(height, width), edge <= 8192 else {
                throw EdgeslimError.package("manifest.json: preprocessing.shortest_edge doesn't cover size")
            }
            let shorter = min(pictureWidth, pictureHeight)
            wide = edge * pictureWidth / shorter
            tall = edge * pictureHeight / shorter
        } else if table.mode == "none" && (pictureWidth != width || pictureHeight != height) {
            throw EdgeslimError.input("the model takes \(width) x \(height) pixels and nothing else")
        }
        let resized = Resampling.resize(
            channels(of: pixels), width: pictureWidth, height: pictureHeight, depth: depth, wide: wide, tall: tall,
            filter: filter)
        return tensor(of: resized, wide: wide, left: (wide - width) / 2, top: (tall - height) / 2)
    }

    private func channels(of pixels: [UInt32]) -> [UInt8] {
        var out = [UInt8]()
        out.reserveCapacity(pixels.count * depth)
        for pixel in pixels {
            let red = pixel >> 16 & 0xFF
            let green = pixel >> 8 & 0xFF
            let blue = pixel & 0xFF
            if depth == 1 {
                out.append(UInt8((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16))  // ITU-R 601-2
            } else {
                out += [UInt8(red), UInt8(green), UInt8(blue)]
            }
        }
        return out
    }

    private func tensor(of picture: [UInt8], wide: Int, left: Int, top: Int) -> Tensor {
        let isFirst = table.layout == "nchw"
        var bytes = [UInt8](repeating: 0, count: height * width * depth)
        for y in 0..<height {
            for x in 0..<width {
                for c in 0..<depth {
                    let at = isFirst ? (c * height + y) * width + x : (y * width + x) * depth + c
                    bytes[at] = picture[((top + y) * wide + left + x) * depth + c]
                }
            }
        }
        let shape = isFirst ? [1, depth, height, width] : [1, height, width, depth]
        if table.dtype == "uint8" {
            return Tensor(bytes: bytes, shape: shape)
        }
        let plane = height * width
        let floats = bytes.enumerated().map { place, byte -> Float in
            let c = isFirst ? place / plane : place % depth
            return (Float(byte) * table.scale - table.mean[c]) / table.std[c]
        }
        return Tensor(floats: floats, shape: shape)
    }
}

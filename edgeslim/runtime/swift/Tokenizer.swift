// SPDX-License-Identifier: Apache-2.0
import CEdgeslim
import Foundation

/// Texts to token ids as Hugging Face's tokenizers make them, and for BPE back: the C tokenizer over tokenizer.etk.
public final class Tokenizer {
    private let bytes: UnsafeMutableRawBufferPointer
    private var tables = esz_tokenizer()

    /// Opens a tokenizer's file, which it copies.
    public init(file: Data) throws {
        bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: max(1, file.count), alignment: 8)
        file.copyBytes(to: bytes)
        guard esz_token_open(&tables, bytes.baseAddress, file.count) == ESZ_TOKEN_OK else {
            bytes.deallocate()
            throw EdgeslimError.package("tokenizer.etk is damaged, or of another version")
        }
    }

    deinit {
        bytes.deallocate()
    }

    /// The padding token's id.
    public var padId: Int64? {
        let id = esz_token_pad(&tables)
        return id < 0 ? nil : id
    }

    /// The ids of one text, special tokens included, at most `maxLength`: a longer text is cut.
    ///
    /// - Parameter literal: whether a special token's name in the text is plain text, as what users wrote should be.
    public func encode(_ text: String, maxLength: Int, literal: Bool = false) throws -> [Int64] {
        var ids = [Int64](repeating: 0, count: maxLength)
        var count = 0
        let utf8 = Array(text.utf8)
        let options: UInt32 = literal ? 2 : 0
        let status = utf8.withUnsafeBytes { raw in
            esz_token_encode(
                &tables, raw.bindMemory(to: CChar.self).baseAddress, utf8.count, options, &ids, maxLength, &count, nil)
        }
        guard status == ESZ_TOKEN_OK else {
            throw EdgeslimError.input("the text can't be encoded within \(maxLength) tokens")
        }
        return Array(ids[0..<count])
    }

    /// BPE: the text of ids. What isn't UTF-8, since a character's tokens are incomplete, becomes U+FFFD.
    public func decode(_ ids: [Int64], skipSpecial: Bool) throws -> String {
        var size = 0
        let skip: Int32 = skipSpecial ? 1 : 0
        _ = esz_token_decode(&tables, ids, ids.count, skip, nil, 0, &size)
        var text = [CChar](repeating: 0, count: max(1, size))
        guard esz_token_decode(&tables, ids, ids.count, skip, &text, size, &size) == ESZ_TOKEN_OK else {
            throw EdgeslimError.input("an id that is no token with a text")
        }
        return String(decoding: text[0..<size].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}

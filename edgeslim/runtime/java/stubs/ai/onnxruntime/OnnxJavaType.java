// SPDX-License-Identifier: Apache-2.0
package ai.onnxruntime;

public enum OnnxJavaType {
    UINT8
}

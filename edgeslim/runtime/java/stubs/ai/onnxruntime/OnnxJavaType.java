// SPDX-License-Identifier: Apache-2.0
package ai.onnxruntime;

public enum OnnxJavaType {
    INT8,
    UINT8
}

// SPDX-License-Identifier: Apache-2.0
package ai.onnxruntime;

public interface ValueInfo {}

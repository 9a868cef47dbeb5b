/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * table: the plain C ops in one table.
 */
#include "ref.h"

void
qk_cpu_widen_c (QkOps * ops)
{
  *ops = (QkOps) {
    .matmul = qk_c_matmul,
    .rms_norm = qk_c_rms_norm,
    .layer_norm = qk_c_layer_norm,
    .rope = qk_c_rope,
    .attention = qk_c_attention,
    .moe = qk_c_moe,
    .silu_mul = qk_c_silu_mul,
    .activate = qk_c_activate,
    .add = qk_c_add,
    .scale = qk_c_scale,
    .clamp = qk_c_clamp,
    .add_scaled = qk_c_add_scaled,
    .embed = qk_c_embed,
    .scatter_rows = qk_c_scatter_rows,
    .conv2d_s2 = qk_c_conv2d_s2,
    .conv1d = qk_c_conv1d,
    .conv1d_depthwise = qk_c_conv1d_depthwise,
    .conv1d_transposed = qk_c_conv1d_transposed,
    .snake = qk_c_snake,
  };
}

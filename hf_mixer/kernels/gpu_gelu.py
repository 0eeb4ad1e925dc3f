# SPDX-License-Identifier: Apache-2.0
"""GELU as a gate that multiplies its argument, for kernels in Triton."""

import triton
import triton.language as tl


@triton.jit
def _polynomial_gate(x, TANH: tl.constexpr):
    """
    What GELU multiplies x by, `1/2 + x P(x^2)` up to where it is 0 or 1 in a narrow type. The coefficients minimize the
    greatest error of GELU, which is 5e-5: rounding near 1 makes five times as much of it in float16, forty times in
    bfloat16. Where the gate would be 0 it is up to 4e-6. It takes half the instructions of the error function, for which the matrix units would have to wait.
    """
    if TANH:
        x = tl.minimum(tl.maximum(x, -4.25), 4.25)
        t = x * x
        p = tl.fma(t, 5.3750559558807254e-11, -5.254249924036003e-09)
        p = tl.fma(p, t, 2.26484246468317e-07)
        p = tl.fma(p, t, -5.7224724514526315e-06)
        p = tl.fma(p, t, 9.547543595544994e-05)
        p = tl.fma(p, t, -0.0011286698281764984)
        p = tl.fma(p, t, 0.009904901497066021)
        p = tl.fma(p, t, -0.06645311415195465)
        p = tl.fma(p, t, 0.39878782629966736)
    else:
        x = tl.minimum(tl.maximum(x, -4.5), 4.5)
        t = x * x
        p = tl.fma(t, 2.999874654241452e-11, -3.2838078922736713e-09)
        p = tl.fma(p, t, 1.5802251596142014e-07)
        p = tl.fma(p, t, -4.431638899404788e-06)
        p = tl.fma(p, t, 8.120948041323572e-05)
        p = tl.fma(p, t, -0.0010362546890974045)
        p = tl.fma(p, t, 0.009580674581229687)
        p = tl.fma(p, t, -0.06597734987735748)
        p = tl.fma(p, t, 0.39870864152908325)
    return tl.fma(p, x, 0.5)


@triton.jit
def gelu_gate(x, TANH: tl.constexpr, EXACT: tl.constexpr):
    """What GELU multiplies x by."""
    if not EXACT:
        return _polynomial_gate(x, TANH)
    if TANH:
        # 0.5 (1 + tanh u) = sigmoid(2 u)
        return 1.0 / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))

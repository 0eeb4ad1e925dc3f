"""
Compile the kernels for Hopper with their largest tile, which needs no GPU, and print a line for each: its name, whether
it uses the matrix units in its type, and the shared memory that it takes in bytes.
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_mixer.kernels import gpu_float8 as float8
from hf_mixer.kernels import gpu_linear as linear


HOPPER = GPUTarget("cuda", 90, 32)


def compile_kernel(kernel, types: dict, constants: dict, warps: int, stages: int):
    types = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = [index for index, name in enumerate(types) if types[name].startswith("*")]
    source = ASTSource(kernel, types, constants, {(index,): [["tt.divisibility", 16]] for index in aligned})
    return triton.compile(source, target=HOPPER, options={"num_warps": warps, "num_stages": stages})


def report(compiled, operand: str):
    instructions = [line for line in compiled.asm["ptx"].splitlines() if "wgmma.mma_async" in line]
    is_used = bool(instructions) and all(f".{operand}.{operand}" in line for line in instructions)
    print(compiled.metadata.name, is_used, compiled.metadata.shared)


tile = max(linear.TILES)
for over_tokens in (True, False):
    # Over tokens with GELU, over channels with the residual connection, which needs the most shared memory
    has_residual = not over_tokens
    x = (1, tile.inner, tile.columns) if over_tokens else (1, tile.rows, tile.inner)
    blocks = {
        "x": x,
        "weight": (tile.rows if over_tokens else tile.columns, tile.inner),
        "output": (1, tile.rows, tile.columns // 2),
        "residual": (1, tile.rows, tile.columns // 2),
    }
    types = {name: f"tensordesc<bf16{list(block)}>" for name, block in blocks.items()} | {"bias_pointer": "*bf16"}
    constants = {"OVER_TOKENS": over_tokens, "ACTIVATION": 1 - has_residual, "HAS_RESIDUAL": has_residual}
    constants |= {"ROWS": tile.rows, "COLUMNS": tile.columns, "INNER": tile.inner, "GROUP": linear.GROUP}
    report(compile_kernel(linear._linear, types, constants, tile.warps, tile.stages + (not has_residual)), "bf16")
for has_residual, tile in enumerate(float8.TILES):
    half = [tile.rows, tile.columns // 2]
    written = f"tensordesc<{'bf16' if has_residual else 'fp8e4nv'}{half}>"
    types = {
        "x": f"tensordesc<fp8e4nv{[tile.rows, tile.inner]}>",
        "weight": f"tensordesc<fp8e4nv{[tile.columns, tile.inner]}>",
        "factors_pointer": "*fp32",
        "output": written,
        "residual": written,
    }
    constants = {"HAS_RESIDUAL": bool(has_residual), "ROWS": tile.rows, "COLUMNS": tile.columns, "INNER": tile.inner}
    constants["GROUP"] = linear.GROUP
    report(compile_kernel(float8._float8_linear, types, constants, tile.warps, tile.stages), "e4m3")

"""
Compile the kernels for Hopper with their largest tile, which needs no GPU, and print a line for each: its name, whether
it uses the matrix units, and the shared memory that it takes in bytes.
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_mixer.kernels import gpu_linear as linear


HOPPER = GPUTarget("cuda", 90, 32)


def compile_kernel(kernel, types: dict, constants: dict, warps: int, stages: int):
    types = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = [index for index, name in enumerate(types) if types[name].startswith("*")]
    source = ASTSource(kernel, types, constants, {(index,): [["tt.divisibility", 16]] for index in aligned})
    return triton.compile(source, target=HOPPER, options={"num_warps": warps, "num_stages": stages})


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
    compiled = compile_kernel(linear._linear, types, constants, tile.warps, tile.stages + (not has_residual))
    print(compiled.metadata.name, "wgmma.mma_async" in compiled.asm["ptx"], compiled.metadata.shared)

"""
Compile the kernels for Hopper, which needs no GPU, and print a line for each: its name, whether it uses the matrix
units, and the shared memory that it takes in bytes.
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_mixer.kernels import token_mixing


HOPPER = GPUTarget("cuda", 90, 32)
SETTINGS = {"TANH": False, "HAS_SCALE": True, "BLOCK_S": 256}
FLOAT32 = ("mean_pointer", "rstd_pointer", "scale_pointer")


def type_of(name: str, constants: dict) -> str:
    if name in constants:
        return "constexpr"
    if name.endswith("_pointer"):
        return "*fp32" if name in FLOAT32 else "*bf16"
    return "i32"


for kernel in (token_mixing._token_mixing_forward, token_mixing._token_mixing_backward):
    names, config = kernel.fn.arg_names, kernel.configs[-1]
    constants = {name: value for name, value in {**SETTINGS, **config.kwargs}.items() if name in names}
    types = {name: type_of(name, constants) for name in names}
    aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if types[name].startswith("*")}
    source = ASTSource(kernel.fn, types, constants, aligned)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=HOPPER, options=options)
    print(kernel.fn.__name__, "wgmma.mma_async" in compiled.asm["ptx"], compiled.metadata.shared)

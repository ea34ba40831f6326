"""One machine instruction that numba lacks: ask the cache for memory that will be read soon.

The table's random look-ups keep the processor from seeing that θ is read in order; asked for ahead of time, θ costs a
quarter less. A hint only: it changes no value and cannot fault.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_BYTE, _INT = ir.IntType(8).as_pointer(), ir.IntType(32)


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """prefetch(array, index): bring the cache line of array[index] near; index may lie beyond the end."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), _BYTE)
        kind = ir.FunctionType(ir.VoidType(), [_BYTE, _INT, _INT, _INT])
        instruction = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE], kind)
        builder.call(instruction, [address, _INT(0), _INT(3), _INT(1)])  # read, keep, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate

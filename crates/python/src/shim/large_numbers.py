"""Whole numbers of any size in messages to and from the supervisor.

msgpack has 64 bits for them. Larger ones are sent as an extension with their digits, which the supervisor knows.
"""

import functools
import sys
from types import SimpleNamespace

import msgspec

# The extension's number; `frames.rs` has the same.
LARGE = 10


def is_large(number):
    return not -(2**63) <= number < 2**64


def packed(value):
    """The value with its large numbers as extensions."""
    if type(value) is int:
        return msgspec.msgpack.Ext(LARGE, in_full(str, value).encode()) if is_large(value) else value
    if isinstance(value, dict):
        return {key: packed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [packed(item) for item in value]
    return value


def in_full(convert, value):
    """Converts a number or its digits, however many: Python stops at 4300 unless it is told otherwise."""
    if not hasattr(sys, "set_int_max_str_digits"):
        return convert(value)
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return convert(value)
    finally:
        sys.set_int_max_str_digits(limit)


def unpacked(kind, data):
    """What an extension stands for."""
    return in_full(int, bytes(data)) if kind == LARGE else msgspec.msgpack.Ext(kind, data)


def install(comms):
    """Teaches the SDK's frames the extension. Only messages that do not go without it are looked through."""
    mixin = comms._FrameMixin
    as_bytes = mixin.as_bytes

    def with_large_numbers(self):
        try:
            return as_bytes(self)
        except OverflowError:
            return as_bytes(msgspec.structs.replace(self, body=packed(self.body)))

    mixin.as_bytes = with_large_numbers
    # The SDK makes its decoders by this name.
    packs = SimpleNamespace(**vars(msgspec.msgpack))
    packs.Decoder = functools.partial(msgspec.msgpack.Decoder, ext_hook=unpacked)
    comms.msgspec = SimpleNamespace(**vars(msgspec))
    comms.msgspec.msgpack = packs

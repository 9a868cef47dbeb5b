#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes the binary seeds of the fuzz targets into corpus/, beside this file.

The seeds of fuzz-config are JSON texts and their own source.
"""
import os
import random
import struct

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")


def write(target, name, data):
    os.makedirs(f"{ROOT}/{target}", exist_ok=True)
    with open(f"{ROOT}/{target}/{name}", "wb") as f:
        f.write(data)


# safetensors: the length of the header, the header, the data.
HEADERS = {  # name: header, bytes of data
    'backwards': ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[8,7]}}', 8),
    'empty': ('{}', 0),
    'hole': ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', 2),
    'overlap': ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}', 6),
    'scalar-and-none': ('{"s":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"n":{"dtype":"U8","shape":[0,4],"data_offsets":[8,8]}}', 8),
    'two': ('{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"l.0.b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]}}', 20),
    'wrap': ('{"a":{"dtype":"F32","shape":[140737488355328,140737488355328],"data_offsets":[0,8]}}', 8),
}
for name, (header, size) in HEADERS.items():
    write("safetensors", name, struct.pack("<Q", len(header)) + header.encode() + bytes(range(size)))
write("safetensors", "length", struct.pack("<Q", 1 << 63) + b"{}")

# json: a byte of QomniJsonFlags, the text.
TEXTS = {
    'deep': (1, '[' * 65 + ']' * 65),
    'duplicate': (1, '{"a":1,"\\u0061":2}'),
    'header': (3, '{"t":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}  '),
    'number': (1, '[1e400,-0,1E-400,0.1]'),
    'plain': (0, '[1,2.5e3,"a\\u00e4",null,true,{"k":[]}]'),
    'strict': (1, '{"a":{"b":[-9223372036854775808,9223372036854775807]},"\\ud83d\\ude00":"😀"}'),
}
for name, (flags, text) in TEXTS.items():
    write("json", name, bytes([flags]) + text.encode())

# api: two bytes are one call, its number and what it is given (fuzz-api.c).
CALLS = {
    'everything-cancelled':
        '1e06 00be 0100 0200 0208 0a01 0d00 0900 0e01 0f10 0f02 0900 0e01 0f02 0f10 1710 '
        '1701 0900 0e01 0f02 0f02 1710 1701 1701',
    'misuse':
        '0e00 0f01 0c00 0600 059b 0400 040d 0401 0401 05ad 05bf 055b 059b 059b 0708 0600 '
        '0708 0905 0b05 0901 0e00 0b09 0e00 0b09 0c00 0d00 1a00 1a01 1600 14ff 1436 1200 '
        '0800 0300',
    'rows-out-of-order':
        '1e06 0900 0e01 0f01 0f03 0f05 0f39 1603 1602 1601 1600 1701 1701 1900 1600 1601 '
        '1701 1602 1701 1603 1701 1701 1b00 1601 1701',
    'turn':
        '1e06 00be 0100 0288 0a00 0d01 0401 059b 0600 0798 0a01 0900 0e00 0f02 0f02 0f02 '
        '0f02 0f02 1701 1701 1701 1701 1701 1701',
    'two-turns-and-a-reset':
        '1e06 00be 0100 0288 0a00 0d01 0401 059b 0600 0798 0a01 0900 0e00 0f02 0f02 0f02 '
        '0f02 0f02 1701 1701 1701 1701 1701 1701 0900 0e01 0f02 0f02 1100 1900 0906 0d01 '
        '0e00 1002 1002 1002 1002 1801 1801 1801 1801 1801 1500 1b00 00be 0100 0288 0a00 '
        '0d01',
    'video-with-sound':
        '1e07 0406 059b 059b 071a 059b 0600 0718 00c8 0100 020a 0a00 0d01 0a02 0d01 0a01 '
        '0d03 0900 0e01 0f02 0f02 0f02 0f02 0f02 1701 1701 1701 1701 1701 1701',
}
for name, calls in CALLS.items():
    write("api", name, bytes.fromhex(calls))
draw = random.Random(1)
write("api", "anything", b"".join(bytes([draw.randrange(32), draw.randrange(256)]) for _ in range(220)))

#!/usr/bin/env python3
"""Writes the seed corpus of the fuzz targets: corpus/{safetensors,json,index,templates}/{ok,bad}_*.

Each bad_ file is one defect that a safetensors or index reader somewhere has had; the replay test holds every
file against the prefix of its name. Run again after a change here: the output is committed.
"""
import json
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).parent / "corpus"
TEXT_LIMIT = 16 << 20


def put(folder, name, data):
    path = HERE / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def st(name, header, payload=b"", length=None):
    """A .safetensors file; header is a dict or raw JSON text."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    put("safetensors", name, struct.pack("<Q", len(text) if length is None else length) + text + payload)


def t(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


P8 = bytes(8)
ONE = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def safetensors():
    st("ok_one", {"w": t()}, P8)
    st("ok_padded", ONE + b" " * 10, P8)
    st("ok_metadata", {"__metadata__": {"format": "pt"}, "w": t()}, P8)
    st("ok_no_tensors", {})
    st("ok_scalar_and_empty", {"e": t("I64", (0, 3), (0, 0)), "s": t("F64", (), (0, 8))}, P8)
    st("ok_out_of_order", {"b": t("U8", (4,), (4, 8)), "a": t("BF16", (2,), (0, 4))}, P8)
    st("ok_unicode_name", '{"größe.重み":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.encode(), P8)
    st("ok_name_512", {"n" * 512: t()}, P8)
    st("ok_rank_16", {"w": t("F32", [1] * 15 + [2])}, P8)
    every = {}
    for i, d in enumerate(["F64", "I64", "F32", "I32", "F16", "BF16", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"]):
        size = 8 if "64" in d else 4 if "32" in d else 2 if "16" in d else 1
        begin = sum(every[k]["data_offsets"][1] - every[k]["data_offsets"][0] for k in every)
        every[f"t{i}"] = t(d, (1,), (begin, begin + size))
    st("ok_every_dtype", every, bytes(every["t11"]["data_offsets"][1]))

    # Sizes and products
    st("bad_product_wraps_to_0", {"w": t("F32", (1 << 32, 1 << 32), (0, 0))})
    st("bad_product_wraps_to_8", {"w": t("I8", (6148914691236517206, 3), (0, 2))}, bytes(2))
    st("bad_bytes_wrap", {"w": t("F64", (1 << 61,), (0, 0))})
    st("bad_zero_hides_overflow", {"w": t("F32", (0, 1 << 40, 1 << 40), (0, 0))})
    st("bad_shape_larger_than_offsets", {"w": t("F32", (1000,), (0, 8))}, P8)
    st("bad_shape_smaller_than_offsets", {"w": t("F32", (1,), (0, 8))}, P8)
    st("bad_dimension_2_63", {"w": t("F32", (1 << 63,), (0, 8))}, P8)
    st("bad_dimension_2_64", ONE.replace(b"[2]", b"[18446744073709551618]"), P8)
    st("bad_dimension_negative", {"w": t("F32", (-2,), (0, 8))}, P8)
    st("bad_dimensions_both_negative", {"w": t("F32", (-1, -2), (0, 8))}, P8)
    st("bad_dimension_float", ONE.replace(b"[2]", b"[2.0]"), P8)
    st("bad_dimension_exponent", ONE.replace(b"[2]", b"[2e0]"), P8)
    st("bad_rank_17", {"w": t("F32", [1] * 16 + [2])}, P8)
    # Offsets
    st("bad_offsets_reversed", {"w": t("F32", (2,), (8, 0))}, P8)
    st("bad_offsets_negative", {"w": t("F32", (2,), (-8, 0))}, P8)
    st("bad_offsets_wrap", {"w": t("F32", (2,), ((1 << 64) - 8, 0))}, P8)
    st("bad_offsets_end_2_64", {"w": t("F32", (2,), ((1 << 64) - 9, (1 << 64) - 1))}, P8)
    st("bad_offsets_float", ONE.replace(b"[0,8]", b"[0,8.0]"), P8)
    st("bad_offsets_one", {"w": t("F32", (2,), (8,))}, P8)
    st("bad_offsets_three", {"w": t("F32", (2,), (0, 4, 8))}, P8)
    st("bad_overlap", {"a": t("F32", (2,), (0, 8)), "b": t("F32", (2,), (4, 12))}, bytes(12))
    st("bad_same_bytes_twice", {"a": t("F32", (2,), (0, 8)), "b": t("F32", (2,), (0, 8))}, P8)
    st("bad_hole", {"a": t("F32", (1,), (0, 4)), "b": t("F32", (1,), (8, 12))}, bytes(12))
    st("bad_hole_at_start", {"a": t("F32", (1,), (4, 8))}, P8)
    st("bad_bytes_after_last", {"w": t()}, bytes(16))
    st("bad_short_file", {"w": t()}, bytes(7))
    st("bad_no_payload", {"w": t()})
    # dtypes
    st("bad_dtype_unknown", {"w": t("F33")}, P8)
    st("bad_dtype_lower_case", {"w": t("f32")}, P8)
    st("bad_dtype_complex", {"w": t("C64", (1,))}, P8)
    st("bad_dtype_number", {"w": t(32)}, P8)
    # Length prefix
    put("safetensors", "bad_empty", b"")
    put("safetensors", "bad_seven_bytes", bytes(7))
    put("safetensors", "bad_eight_zeros", bytes(8))
    st("bad_length_plus_8_wraps", {"w": t()}, P8, length=(1 << 64) - 8)
    st("bad_length_plus_8_wraps_small", {"w": t()}, P8, length=(1 << 64) - 1)
    st("bad_length_negative", {"w": t()}, P8, length=1 << 63)
    st("bad_length_over_file", {"w": t()}, P8, length=1000)
    st("bad_length_over_cap", {"w": t()}, P8, length=TEXT_LIMIT + 1)
    st("bad_length_cuts_json", ONE, P8, length=len(ONE) - 1)
    st("bad_length_into_payload", ONE, P8, length=len(ONE) + 4)
    # Structure
    st("bad_duplicate_tensor", ONE[:-1] + b"," + ONE[1:], P8)
    st("bad_duplicate_dtype", ONE.replace(b'"dtype":"F32"', b'"dtype":"F64","dtype":"F32"'), P8)
    st("bad_duplicate_offsets", ONE.replace(b'"data_offsets":[0,8]', b'"data_offsets":[0,8],"data_offsets":[0,8]'), P8)
    st("bad_duplicate_escaped", ONE[:-1] + b"," + ONE[1:].replace(b'"w"', b'"\\u0077"'), P8)
    st("bad_duplicate_metadata", b'{"__metadata__":{},"__metadata__":{}}')
    st("bad_duplicate_metadata_key", b'{"__metadata__":{"a":"1","a":"2"}}')
    st("bad_metadata_number", b'{"__metadata__":{"a":1}}')
    st("bad_metadata_nested", b'{"__metadata__":{"a":{"b":"c"}}}')
    st("bad_deep_nesting", b'{"w":' + b"[" * 5000 + b"]" * 5000 + b"}")
    st("bad_deep_objects", b'{"a":' * 3000 + b"1" + b"}" * 3000)
    st("bad_unknown_field", ONE.replace(b'"dtype"', b'"codec":"zip","dtype"'), P8)
    st("bad_no_dtype", b'{"w":{"shape":[2],"data_offsets":[0,8]}}', P8)
    st("bad_no_shape", b'{"w":{"dtype":"F32","data_offsets":[0,8]}}', P8)
    st("bad_no_offsets", b'{"w":{"dtype":"F32","shape":[2]}}', P8)
    st("bad_tensor_null", b'{"w":null}')
    st("bad_top_level_array", b"[]")
    st("bad_leading_space", b" " + ONE, P8)
    st("bad_trailing_comma", ONE[:-1] + b",}", P8)
    st("bad_second_document", ONE + b"{}", P8)
    st("bad_hidden_after_zero_byte", ONE + b"\0{{{", P8)
    # Names
    st("bad_name_empty", ONE.replace(b'"w"', b'""'), P8)
    st("bad_name_513", {"n" * 513: t()}, P8)
    st("bad_name_nul", ONE.replace(b'"w"', b'"a\\u0000b"'), P8)
    st("bad_name_newline", ONE.replace(b'"w"', b'"a\\nb"'), P8)
    st("bad_name_escape_sequence", ONE.replace(b'"w"', b'"\\u001b[2J"'), P8)
    st("bad_name_c1_control", ONE.replace(b'"w"', b'"\\u009b31m"'), P8)
    st("bad_utf8_byte", ONE.replace(b'"w"', b'"\xff"'), P8)
    st("bad_utf8_overlong", ONE.replace(b'"w"', b'"\xc0\xaf"'), P8)
    st("bad_utf8_surrogate", ONE.replace(b'"w"', b'"\xed\xa0\x80"'), P8)
    st("bad_utf8_lone_escape", ONE.replace(b'"w"', b'"\\ud800"'), P8)
    st("bad_utf8_cut", ONE.replace(b'"w"', b'"\xe2\x82"'), P8)


def config():
    put("json", "ok_config.json", b'{"hidden_size": 64, "a": 0.5, "n": null, "rope_scaling": {"factor": 8.0}}')
    put("json", "ok_depth_64.json", b"[" * 64 + b"]" * 64)
    put("json", "ok_big_integers.json", b'{"a": 18446744073709551615, "n": -9223372036854775808}')
    put("json", "bad_depth_65.json", b"[" * 65 + b"]" * 65)
    put("json", "bad_deep_json.json", b'{"a":' * 20000)
    put("json", "bad_nan.json", b'{"a": NaN}')
    put("json", "bad_infinity.json", b'{"a": -Infinity}')
    put("json", "bad_overflow.json", b'{"a": 1e999}')
    put("json", "bad_duplicate_key.json", b'{"a": 1, "b": {"c": 1, "c": 1}}')
    put("json", "bad_utf8.json", b'{"a": "\xff"}')
    put("json", "bad_zero_byte.json", b'{"a": 1}\0 junk')
    put("json", "bad_comment.json", b'{"a": 1 /* no */}')
    put("json", "bad_cut.json", b'{"hidden_size": 6')
    put("json", "bad_empty.json", b"")


def index():
    def put_map(name, weights, **more):
        put("index", name, json.dumps({**more, "weight_map": weights}).encode())

    one = "model-00001-of-00002.safetensors"
    put_map("ok_index.json", {"a": one, "b": "model-00002-of-00002.safetensors"}, metadata={"total_size": 16})
    put_map("ok_total_float.json", {"a": one}, metadata={"total_size": 16.0})
    put_map("bad_parent.json", {"a": "../" + one})
    put_map("bad_inside_parent.json", {"a": "x/../../" + one})
    put_map("bad_absolute.json", {"a": "/etc/x.safetensors"})
    put_map("bad_folder.json", {"a": "shards/" + one})
    put_map("bad_backslash.json", {"a": "..\\" + one})
    put_map("bad_dot_dot.json", {"a": ".."})
    put_map("bad_empty_shard.json", {"a": ""})
    put_map("bad_nul_in_shard.json", {"a": "x\0.safetensors"})
    put_map("bad_pickle_shard.json", {"a": "pytorch_model-00001-of-00002.bin"})
    put_map("bad_shard_number.json", {"a": 1})
    put_map("bad_long_shard.json", {"a": "m" * 300 + ".safetensors"})
    put_map("bad_name.json", {"a\nb": one})
    put_map("bad_empty_map.json", {})
    put_map("bad_total_negative.json", {"a": one}, metadata={"total_size": -1})
    put_map("bad_total_text.json", {"a": one}, metadata={"total_size": "16"})
    put("index", "bad_no_map.json", b'{"metadata": {"total_size": 0}}')
    put("index", "bad_map_array.json", b'{"weight_map": []}')
    put("index", "bad_duplicate.json", b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')


def templates():
    """Those of the parity test, and what ends in a refusal; rendered for two turns, see template_input.cpp."""
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))
    import chat_template_zoo

    for name, text in chat_template_zoo.TEMPLATES.items():
        put("templates", ("bad_" if name == "gemma" else "ok_") + name, text.encode())
    bad = {
        "unclosed": "{% if x %}", "no_utf8": b"{{ '\xff' }}", "steps": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "memory": "{{ 'x' * 9999999999 }}", "doubling": "{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "nested_lists": "{% set n = namespace(s=[]) %}{% for a in range(9999) %}{% set n.s = [n.s] %}{% endfor %}",
        "nested_iterators": "{% set n = namespace(s=[1]) %}{% for a in range(9999) %}{% set n.s = n.s | map('abs') %}{% endfor %}",
        "shared_tuples": "{% set n = namespace(s=(1,)) %}{% for a in range(90) %}{% set n.s = (n.s, n.s) %}{% endfor %}{{ {n.s: 1} }}",
        "itself": "{% set n = namespace() %}{% set n.n = n %}{{ n }}", "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "brackets": "{{ " + "(" * 5000, "minuses": "{{ " + "-" * 5000 + "1 }}", "sums": "{{ 1" + " + 1" * 5000 + " }}",
        "overflow": "{{ 9223372036854775807 + 1 }}", "least": "{{ (-9223372036854775807 - 1) // -1 }}", "slice": "{{ 'a'[::0] }}",
        "call_itself": "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{{ m(caller) }}{% endcall %}",
    }  # fmt: skip
    ok = {
        "empty": "", "raw": "{% raw %}{{ x }}{% endraw %}", "kept_macro": "{% set n = namespace() %}{% for x in [1, 2] %}{% macro m() %}{{ x }}{% endmacro %}{% set n.m = m %}{% endfor %}{{ n.m() }}",
        "kept_caller": "{% set n = namespace() %}{% macro m() %}{% set n.c = caller %}{% endmacro %}{% call m() %}x{% endcall %}{{ n.c() }}",
        "kept_loop": "{% set n = namespace() %}{% for x in [1, 2] %}{% set n.l = loop %}{% endfor %}{{ n.l.last }}{{ n.l.length }}",
        "slices": "{{ 'abc'[-9223372036854775807:9223372036854775807:9223372036854775807] }}{{ [1, 2, 3][::-9223372036854775807] }}",
        "filters": "{{ messages | map(attribute='role') | map('upper') | select('string') | unique | sort(reverse=true) | join('-') | indent(2, true) | tojson }}",
    }  # fmt: skip
    for prefix, kinds in (("bad_", bad), ("ok_", ok)):
        for name, text in kinds.items():
            put("templates", prefix + name, text if isinstance(text, bytes) else text.encode())


if __name__ == "__main__":
    templates()
    safetensors()
    config()
    index()

"""The cast lint refuses every forbidden form, and nothing that is legal."""

import pathlib
import subprocess
import sys

import pytest

LINT = pathlib.Path(__file__).resolve().parents[2] / "tools" / "lint_casts"

FORBIDDEN = [
    "at::autocast::set_autocast_enabled(at::kCPU, true);",
    "AutocastMode guard;",
    "return x.half();",
    "return x.bfloat16();",
    "return x.float();",
    "return x.double();",
    "return x->half ();",
    "return x.to(at::kHalf);",
    "return x.to(y.options());",
    "return x.to(device);",
    "return x\n    .to(at::kFloat);",
    "module->to(torch::kBFloat16);",
    "return x . to (at::kHalf, /*non_blocking=*/true);",
    "return x.toType(at::kFloat);",
    "return x.type_as(y);",
    "return at::_to_copy(x, at::kHalf);",
    "return at::_ops::_to_copy::call(x);",
    "return at::_ops::to_dtype::call(x, at::kHalf, false, false, std::nullopt);",
    "return at::_cast_Half(x);",
    "std::transform(a, b, c, &at::Tensor::to);",
    'log("it\'s"); return x.to(at::kHalf);',
    "const int n = 1'000'000; return x.half(); // 1'0",
]

LEGAL = [
    "return precision::cast(x, Cast::kLogitsToFloat);",
    "return precision::move(x, device);",
    "return x.item<double>();",
    "return value.to<std::string>();",
    "// x.to(at::kHalf) would be a cast",
    "/* autocast\n x.half() */",
    'throw UsageError("autocast is refused: x.half(), x.to(dtype)");',
    'const char* text = R"(x.to(at::kHalf))";',
    "const float half(2); std::move_to(x); auto_to(x); into(x);",
    "const auto total = static_cast<double>(n) / 1'000;",
    "x.to_string(); x.toStringView(); x.halves(); x.floating_point();",
]


def lint(root):
    return subprocess.run([sys.executable, str(LINT), str(root)], capture_output=True, text=True, timeout=60)


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


@pytest.mark.parametrize("floor", ["modules/models", "trainer/loop"])
@pytest.mark.parametrize("form", FORBIDDEN)
def test_forbidden_form_is_refused_with_its_place(tmp_path, floor, form):
    write(tmp_path, f"{floor}/example.cpp", "\n\n" + form)
    result = lint(tmp_path)
    assert result.returncode == 1
    assert f"{floor}/example.cpp:" in result.stdout
    line = int(result.stdout.split(":")[1])
    assert 3 <= line <= 2 + len(form.split("\n"))


@pytest.mark.parametrize("form", LEGAL)
def test_legal_form_passes(tmp_path, form):
    write(tmp_path, "modules/models/example.h", form)
    result = lint(tmp_path)
    assert result.returncode == 0, result.stdout
    assert "1 files, 0 forbidden" in result.stdout


def test_precision_and_kernels_may_cast(tmp_path):
    for path in ("modules/precision/casts.cpp", "modules/precision/deep/er.cpp", "kernels/linear/linear_cpu.cpp"):
        write(tmp_path, path, "return x.to(at::kHalf);")
    assert lint(tmp_path).returncode == 0


def test_a_folder_that_only_begins_like_precision_may_not(tmp_path):
    write(tmp_path, "modules/precision_extra/casts.cpp", "return x.to(at::kHalf);")
    assert lint(tmp_path).returncode == 1


def test_the_tree_itself_is_clean():
    result = lint(LINT.parents[1])
    assert result.returncode == 0, result.stdout

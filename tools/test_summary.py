"""test_summary.py JUNIT: the slowest tests, why tests were skipped, and one closing line that counts every case.

ctest counts a few GoogleTest suites or a pytest file as one test; here its cases are counted one by one.
"""

import collections
import re
import sys
import xml.etree.ElementTree as ElementTree

PYTEST_COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?|xfailed|xpassed)\b")
PYTEST_CLOSING = re.compile(r"^(?:=+ )?(?:no tests ran|\d+ \w+).* in [\d.]+s", re.MULTILINE)
GTEST_COUNT = re.compile(r"^\[  (PASSED|SKIPPED|FAILED) +\] (\d+) tests?", re.MULTILINE)
GTEST_SKIPPED = re.compile(r": Skipped\n(.*?)\n(?:\n|\[  SKIPPED)", re.DOTALL)


def gtest_counts(output):
    """The counts below GoogleTest's closing line, or None when it never came to one."""
    closing = output.rfind("\n[==========]")
    counts = collections.Counter()
    for word, number in GTEST_COUNT.findall(output[closing:]) if closing >= 0 else ():
        counts[word.lower()] += int(number)
    return counts or None


def pytest_counts(output):
    """The counts of pytest's last closing line, or None when it never came to one."""
    closing = PYTEST_CLOSING.findall(output)
    if not closing:
        return None
    counts = collections.Counter()
    for number, word in PYTEST_COUNT.findall(closing[-1]):
        kind = {"xfailed": "passed", "skipped": "skipped", "passed": "passed"}.get(word, "failed")
        counts[kind] += int(number)
    return counts


def skip_reasons(name, output):
    """(reason, how many cases) of one test of ctest's."""
    if name.startswith("python."):
        for number, reason in re.findall(r"^SKIPPED \[(\d+)\] [^\n]*?:(?:\d+:)? ([^\n]*)$", output, re.MULTILINE):
            yield reason, int(number)
        return
    reasons = GTEST_SKIPPED.findall(output)
    for reason in reasons or ["no reason given"]:
        yield reason.strip().replace("\n", " "), 1


def main(path):
    total, reasons, times = collections.Counter(), collections.Counter(), []
    failed_names = []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name, output = case.get("name"), case.findtext("system-out") or ""
        times.append((float(case.get("time") or 0), name))
        status = case.get("status")
        counts = pytest_counts(output) if name.startswith("python.") else gtest_counts(output)
        if status == "run":
            total += counts or collections.Counter(passed=1)
        elif case.find("skipped") is not None and status == "notrun":
            total["skipped"] += 1
        else:
            failed_names.append(name)
            # A file that died before its closing line, or whose process failed after it, is one failure.
            total += counts if counts and counts["failed"] else collections.Counter(failed=1)
        if case.find("skipped") is not None or (counts and counts["skipped"]):
            for reason, number in skip_reasons(name, output):
                reasons[reason] += number
    for seconds, name in sorted(times, reverse=True)[:10]:
        if seconds >= 1:
            print(f"slowest: {seconds:7.1f} s  {name}")
    for reason, number in sorted(reasons.items()):
        print(f"skipped: {number} x {reason}")
    for name in failed_names:
        print(f"failed:  {name}")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Expressions and statements for test_chat_template.py: each is rendered by Jinja2 and by Limbeck, with VARIABLES."""

VARIABLES = {
    "s": "Hello World",
    "u": "Größe ß 你好 🤗 e\u0301",
    "empty": "",
    "padded": "  \t two words \n ",
    "lines": "one\n\n  two\r\nthree\n",
    "html": "<a href=\"x\">'&'</a>",
    "n": 7,
    "neg": -3,
    "zero": 0,
    "f": 2.5,
    "tiny": 1.0e-7,
    "big": 1e22,
    "yes": True,
    "no": False,
    "nil": None,
    "xs": [3, 1, 2, 3],
    "mixed": [1, "a", None, True, 2.5, [1], {"k": "v"}],
    "names": ["bob", "Alice", "carol", "Bob"],
    "d": {"b": 1, "a": {"x": [10, 20]}, "items": "key", "keys": 5, "_private": 1, "Ä": "ä"},
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi\n", "extra": {"deep": 1}},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"q": "é", "n": 1.0}}]},
        {"role": "user", "content": ""},
    ],
}

EXPRESSIONS = """
1 + 2 * 3 - 4
7 / 2
7 // 2
-7 // 2
7 // -2
-7 % 3
7 % -3
7.5 // 2
-7.5 % 2
7.5 % -2
0.0 % -1
2 ** 10
2 ** -1
-2 ** 2
2 ** 3 ** 2
2 ** 0.5
1 / 3
10 / 5
1e3
1.5e-7
1e16
1e15
123456789012345678
0.1 + 0.2
100000000000000000000.0
0x1F + 0b101 + 0o17 + 1_000
True + True
true * 3
no + 1.5
-yes
+no
1 / 0
1 % 0
1.0 // 0
9223372036854775807
"a" * 3
3 * "ab"
"a" * -1
[1, 2] * 2
(1, 2) * 2
[1] + [2]
(1,) + (2, 3)
[1] + (2,)
"a" + "b" "c"
"a" + 1
1 ~ "a" ~ nil ~ true ~ 2.0 ~ missing ~ [1]
s ~ u
"%s and %s" % (s, n)
"%s" % n
"%d%%" % 3.7
"%(b)s" % d
"%s" % missing
"%r" % s
"%s" % (1, 2)
"abc" % []
"{} {1}".format(1, 2)
"{0} {1} {0}".format(s, n)
"{} {} {x!r}".format(1, nil, x="q")
"{{}} {}".format(f)
"{}".format(1, 2)
"{}".format()
()
(1,)
1, 2
[1, [2, (3,)], {"a": nil}]
{"a": 1, "b": [true, none], 3: 4, none: 5, 2.5: "x", (1, 2): 3}
{"a": 1, "a": 2}
{1: "a", 1.0: "b", true: "c"}
{[1]: 2}
"it's"
'say "hi"'
"both ' and \\""
["it's", 'say "hi"', "both ' \\" x", "tab\\t nl\\n cr\\r bs\\\\ nul\\x00 é \\u200b \\U0001F917"]
"\\x41\\u00e9\\101\\q\\é"
"line\\
continued"
nil
yes
missing
missing.x
missing["x"]
missing()
missing + 1
1 + missing
missing ~ "x"
[missing]
{"a": missing}
missing == missing
missing == none
missing == ""
missing != 1
missing < 1
not missing
missing or "x"
missing and "x"
missing is defined
missing is undefined
missing is none
missing is string
missing is iterable
missing is sequence
missing is mapping
missing is callable
"a" in missing
missing in [1]
missing in [missing]
missing | length
missing | list
missing | upper
missing | default("d")
missing | default
missing | d("x", true)
missing | int
missing | float
missing | join(",")
missing | first
missing | last
missing | sort
missing | trim
missing | string
missing | tojson
missing | items | list
missing | map("upper") | list
missing | selectattr("x") | list
missing | replace("a", "b")
missing | title
missing | reverse | list
missing | unique | list
missing | round
missing | abs
missing | indent
missing | dictsort
missing | sum
missing | max
missing | e
missing[0:1]
none.x
none.x.y
none["x"]
none[0]
none[1:]
none + 1
none == none
none in [none]
none < 1
1 < 2 < 3
1 < 3 < 2
1 < 2 == 2
1 == 1.0 == true
0 == false
"1" == 1
"a" < "b" <= "b"
"a" < 1
[1, 2] < [1, 3]
[1, 2] < [1]
(1, 2) < (1, 3)
[1] < (1,)
[1] == (1,)
[1, 2.0] == [1.0, 2]
{"a": 1, "b": 2} == {"b": 2, "a": 1}
{"a": 1} < {"b": 2}
9007199254740993 == 9007199254740992.0
9007199254740993 > 9007199254740992.0
1 in xs
1.0 in xs
"x" not in xs
not "x" in xs
"ell" in s
"" in s
1 in s
none in s
"b" in d
[1] in d
1 in 5
1 in none
(1, 2) in [(1, 2)]
1 in d.values()
("b", 1) in d.items()
yes and nil
yes and n
no or empty
no or s
not (yes and no) or no
not not n
s if yes else u
s if no
s if no else u if no else n
(s if no) is defined
"a" if missing else "b"
n is odd
n is even
n is divisibleby 7
n is divisibleby(2)
f is odd
s is string
s is number
n is number
yes is number
yes is integer
n is integer
f is float
f is integer
yes is boolean
yes is true
n is true
no is false
nil is none
nil is not none
d is mapping
xs is mapping
xs is sequence
d is sequence
s is sequence
n is sequence
xs is iterable
n is iterable
d.items() is sequence
d.items() is iterable
(xs | map("abs")) is sequence
(xs | map("abs")) is iterable
n is eq 7
n is equalto(8)
n is ne 7
n is gt 6
n is ge 7
n is lt 7
n is le 7
n is greaterthan 1
n is lessthan 1
n is in [7]
n is in xs
n is not in xs
n is sameas n.real
nil is sameas none
yes is sameas true
s is lower
"abc" is lower
"ABC" is upper
"" is lower
"upper" is filter
"defined" is test
"nothing" is filter
range is callable
s.upper is callable
s is callable
s is nothing
s | nothing
s | nothing if no else 1
1 if yes else s | nothing
n is defined and s is string
n is not defined or s
s.upper()
s.lower()
s.title()
"they're bill's friends".title()
s.capitalize()
u.upper()
u.lower()
u.title()
u.capitalize()
"ΑΣ ΑΣΑ Σ".lower()
"ŉ ǰ ﬁ ﬆ ǆ Ǆ".upper()
"ŉ ǰ ﬁx ﬆ ǆa Ǆa".title()
"ﬁSH".capitalize()
"İI".lower()
s.strip()
padded.strip()
padded.lstrip()
padded.rstrip()
padded.strip(" \\t")
s.strip("Hd")
s.rstrip("dlr")
s.lstrip("H")
u.strip("G🤗")
"\\x1c\\x85x\\u3000".strip()
s.split()
padded.split()
padded.split(none, 1)
padded.rsplit(none, 1)
s.split("o")
s.split("o", 1)
s.rsplit("o", 1)
s.split(sep="o", maxsplit=1)
s.split("")
s.split("zz")
empty.split()
empty.split(",")
lines.split("\\n")
lines.splitlines()
lines.splitlines(true)
"a\\x0bb\\x85c\\u2028d".splitlines()
s.split("</think>")[-1].lstrip("\\n")
"<think>x</think>\\n\\nanswer".split("</think>")[0].rstrip("\\n").split("<think>")[-1].lstrip("\\n")
s.replace("o", "0")
s.replace("o", "0", 1)
s.replace("", "-")
s.replace("", "-", 3)
u.replace("ß", "ss")
s.startswith("Hell")
s.startswith(("x", "H"))
s.startswith("W", 6)
s.startswith("W", 6, 7)
s.startswith("", 12)
s.startswith(1)
s.endswith("ld")
s.endswith(("x", "d"))
s.find("o")
s.find("o", 5)
s.find("zz")
u.find("好")
s.rfind("o")
s.index("W")
s.index("zz")
s.count("o")
s.count("")
s.count("l", 3)
s.isdigit()
"123".isdigit()
"".isdigit()
"abc".isalpha()
"你好".isalpha()
"a1".isalnum()
"  ".isspace()
"abc".islower()
"ABC".isupper()
", ".join(["a", "b"])
", ".join(names)
", ".join([1])
"-".join("abc")
s.center(20) ~ "|"
s.center(14) ~ "|"
"ab".center(5, "*")
s.ljust(13, ".")
s.rjust(13)
"-5".zfill(4)
s.partition(" ")
s.partition("zz")
s.rpartition("o")
s.rpartition("zz")
s.removeprefix("Hello ")
s.removesuffix("World")
s.removesuffix("x")
s.nothing
s.__class__
s.__class__.__mro__
s.upper
s[0]
s[-1]
s[100]
s["x"]
s["upper"]()
s[1:4]
s[::-1]
s[::2]
s[-3:]
s[:-3]
s[10:2:-2]
s[::0]
s["a":]
s[none:3]
s[1:100]
s[-100:3]
u[::-1]
u[5]
u[-3:]
u | length
xs[0]
xs[-1]
xs[10]
xs[-10]
xs[true]
xs["x"]
xs[1.0]
xs.0
xs[1:]
xs[::-1]
xs[-2:]
xs[3:1:-1]
(1, 2, 3)[1:]
xs[1, 2]
xs.count(3)
xs.index(2)
xs.index(99)
xs.append
xs.append(1)
xs.copy()
xs.nothing
xs.sort()
d.b
d.a.x[1]
d["a"]["x"][-1]
d.items
d["items"]
d.keys
d["keys"]
d["values"]
d.nothing
d.nothing.x
d._private
d["_private"]
d.get("b")
d.get("q")
d.get("q", 1)
d.get([1])
d.update
d.update({"x": 1})
d.pop("b")
d.items()
d.keys()
d.values()
d.keys() | list
d.values() | first
d.items() | list | length
d.items() | length
d.keys()[0]
d[1:2]
d["Ä"]
d.copy() == d
d | length
d | first
d | last
d | list
d | join("-")
d | items | list
d | items | first
d | dictsort
d | dictsort(reverse=true) | map("first") | list
{"b": 1, "A": 2} | dictsort
{"b": 1, "A": 2} | dictsort(true)
{"b": 1, "A": 2} | dictsort(by="value")
{"b": 1, 2: 2} | dictsort
d | tojson
d | tojson(indent=2)
d | tojson(ensure_ascii=true)
d | tojson(sort_keys=true)
d | tojson(separators=(",", ":"))
d | tojson(indent=4, sort_keys=true, separators=[";", "="])
mixed | tojson
mixed | tojson(indent="--")
u | tojson
u | tojson(ensure_ascii=true)
"\\x00\\x1f\\x7f\\"\\\\/\\u2028<>&'" | tojson
"\\x00\\x1f\\x7f\\"\\\\/\\u2028<>&'" | tojson(ensure_ascii=true)
[1.0, 1e100, 1e-7, 0.1, -0.0] | tojson
{1: 2, none: 3, true: 4, 1.5: 5} | tojson
{(1, 2): 3} | tojson
[] | tojson(indent=2)
{"a": [], "b": {}} | tojson(indent=1)
range(3) | tojson
namespace(a=1) | tojson
messages | tojson
messages[2].tool_calls[0].arguments | tojson
(1, "a") | tojson
[1, 2] | tojson(indent=0)
s | upper
s | lower
s | title
"hello-world (foo) [bar] {x} <y> it's ŉ ﬁ ΑΣ" | title
s | capitalize
n | upper
nil | trim
padded | trim
s | trim("Hd")
s | length
n | length
xs | count
nil | length
xs | first
[] | first
[] | last
xs | last
s | first
s | last
xs | map("abs") | first
xs | map("abs") | last
xs | map("abs") | length
s | list
xs | list
n | list
xs | join
xs | join(", ")
xs | join(1)
messages | join(", ", attribute="role")
names | map("upper") | list
names | map("replace", "o", "0") | join(" ")
messages | map(attribute="role") | list
messages | map(attribute="extra.deep") | list
messages | map(attribute="extra", default="none") | list
messages | map(attribute="extra") | map("default", "x") | list
xs | map | list
[] | map | list
xs | map("nothing") | list
xs | map(attribute="x", nope=1) | list
messages | selectattr("role", "equalto", "user") | list | length
messages | selectattr("role", "==", "user") | map(attribute="content") | list
messages | selectattr("role", "in", ["user", "system"]) | list | length
messages | selectattr("extra") | list
messages | selectattr("extra", "defined") | list | length
messages | selectattr("content", "none") | list | length
messages | rejectattr("role", "equalto", "user") | map(attribute="role") | join(",")
messages | rejectattr("content") | list | length
messages | selectattr | list
mixed | select("string") | list
mixed | reject("none") | list
mixed | select | list
xs | select("odd") | list
xs | select(">", 1) | list
xs | select("divisibleby", 3) | list
xs | select("nothing") | list
s | replace("o", "0")
s | replace("o", "0", 1)
123 | replace(2, "x")
xs | reverse | list
s | reverse
xs | map("abs") | reverse | list
d | reverse | list
d.items() | reverse | list | length
5 | reverse
xs | sort
xs | sort(reverse=true)
names | sort
names | sort(case_sensitive=true)
names | sort(reverse=true)
mixed | sort
messages | sort(attribute="role") | map(attribute="role") | list
messages | sort(attribute="role,content") | length
xs | unique | list
names | unique | list
names | unique(case_sensitive=true) | list
[1, 1.0, true, "1"] | unique | list
[[1]] | unique | list
messages | unique(attribute="role") | map(attribute="role") | list
xs | sum
xs | sum(start=10)
["a"] | sum
[[1], [2]] | sum(start=[])
messages | map(attribute="role") | map("length") | sum
xs | max
xs | min
names | max
[] | max
messages | max(attribute="role")
"42" | int
" 42 " | int
"42.9" | int
"x" | int
"x" | int(5)
"ff" | int(base=16)
"0xff" | int(base=16)
"1_000" | int
"1e3" | int
"" | int
nil | int
2.9 | int
-2.9 | int
yes | int
[] | int
"inf" | int
"nan" | int
("inf" | float) | int
"2.5" | float
"1e400" | float
"1e-400" | float
"nan" | float
"x" | float
"x" | float(1)
n | float
nil | float
"1_0.5" | float
" 3 " | float
2.5 | round
3.5 | round
2.675 | round(2)
1234.567 | round(1)
-2.5 | round
42 | round
42.55 | round(1, "floor")
42.51 | round(1, "ceil")
42 | round(0, "ceil")
0.1 | round(3)
1e22 | round(2)
neg | abs
-2.5 | abs
s | abs
yes | abs
n | string
nil | string
f | string ~ "x"
lines | indent
lines | indent(2, true)
lines | indent(2, first=true, blank=true)
lines | indent("> ")
lines | indent(width=1)
n | indent
html | e
html | escape
html | safe
(html | safe) + html
html + (html | safe)
(html | safe) ~ html
(html | e) | e
(html | safe) | length
(html | safe)[:3] + "<"
(html | safe) | upper
(html | safe) | trim + "<"
(html | safe) | replace("<", "[") + "<"
(html | safe) | title + "<"
(html | safe) | string + "<"
(html | safe) == html
(html | safe) is string
(html | safe) is escaped
html is escaped
[html | safe]
(html | safe) * 2 + "<"
(n | safe) + "<"
[html | safe] | join("<")
(html | safe) | tojson
(html | safe) | first + "<"
(html | safe) | reverse + "<"
range(5)
range(5) | list
range(1, 10, 3) | list
range(5, 0, -2) | list
range(0) | list
range(3)[1]
range(3)[-1]
range(3)[7]
range(5) | length
3 in range(5)
range(1, 2) == range(1, 2)
range(100001)
range(1, 2, 0)
range("a")
range(stop=3)
dict(a=1, b="x")
dict([("a", 1)], c=2)
dict(d, b=2).b
dict([1])
namespace(a=1).a
namespace(a=1).b
namespace({"x": 1}).x
namespace(a=1)
namespace(a=1)["a"]
namespace() is iterable
raise_exception("no")
raise_exception()
strftime_now("%Y")
strftime_now("%d %b %Y")
loop
self_made
n()
s()
[1, 2, 3][1:][0]
messages[-1]["content"]
messages[0].content | length
messages | length > 3
messages[1:] | map(attribute="role") | list
messages[0]["role"] == "system"
(messages | last).role
messages | map(attribute="content") | select("string") | map("trim") | list
messages[2]["tool_calls"][0].arguments.items() | list
messages[2].tool_calls is defined and messages[2].tool_calls
messages[2].tool_calls is iterable and messages[2].tool_calls | length > 0
messages[2].content is none
messages[2].content or "nothing"
[1, 2, 3] | first + 1
-1 | abs
- 2.5 | abs + 1
not n is defined
n is defined is string
1 is string if yes
1.5.real
1..real
[1, 2,]
{"a": 1,}
f(1,)
(1, 2,)
[1 2]
{"a" 1}
{"a": }
1 +
* 1
a b
"open
{{ 1 }}
[1
1]
(1]
#
$
a = 1
f(a=1, 2)
f(a=1, a=2)
f(*xs)
range(*[1, 4]) | list
dict(**d)
dict(**5)
range(*5)
s.split(*["o"], **{"maxsplit": 1})
1 if
not
in
is defined
1 is
1 is not
x.1.2
x.
x[
s | 
s | trim |
s | trim()
s | trim(1, 2)
s | trim(chars="H")
s | trim(nope=1)
s.upper(1)
s.split(nope=1)
d.get()
d.get("a", default=1)
true.x
5 .real
True == true
None is none
False
none
True
0777
00
08
1_
1__0
1.
.5
1.e5
é
"é" ~ 'ü'
s|trim|upper|lower|length
xs|map('string')|join(', ')|upper
1 - -1
1--1
1+-+1
2*-1
a.b.c is defined
d.zz is defined
d.zz.y is defined
(d.zz or {}).y is defined
""".strip("\n").replace("line\\\\\ncontinued", "line\\\\ncontinued").splitlines()  # fmt: skip

STATEMENTS = [
    "{% if n %}a{% elif s %}b{% else %}c{% endif %}",
    "{% if zero %}a{% elif nil %}b{% else %}c{% endif %}",
    "{% if no %}a{% endif %}|",
    "{% if yes, no %}t{% endif %}",
    "{% for x in xs %}{{ x }},{% endfor %}",
    "{% for x in [] %}{{ x }}{% else %}empty{% endfor %}",
    "{% for x in missing %}{{ x }}{% else %}empty{% endfor %}",
    "{% for x in none %}{% endfor %}",
    "{% for x in 5 %}{% endfor %}",
    "{% for x in xs if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% else %}none{% endfor %}",
    "{% for x in xs if x > 9 %}{{ x }}{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d | dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in d %}{{ k }};{% endfor %}",
    "{% for c in u %}[{{ c }}]{% endfor %}",
    "{% for a, b in ['xy', (1, 2), [3, 4]] %}{{ a }}{{ b }};{% endfor %}",
    "{% for a, b in [1] %}{% endfor %}",
    "{% for a, b in [[1, 2, 3]] %}{% endfor %}",
    "{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for a in 1, 2 %}{{ a }}{% endfor %}",
    "{% for x in xs %}{{ loop.index }} {{ loop.index0 }} {{ loop.revindex }} {{ loop.revindex0 }} {{ loop.first }} "
    "{{ loop.last }} {{ loop.length }} {{ loop.depth }} {{ loop.depth0 }}\n{% endfor %}",
    "{% for x in xs %}{{ loop.previtem }}<{{ x }}<{{ loop.nextitem }} {{ loop.previtem is defined }};{% endfor %}",
    "{% for x in xs %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in xs %}{{ loop.changed(x > 1) }}{% endfor %}",
    "{% for x in xs %}{{ loop }} {{ loop.nope }} {{ loop['index'] }};{% endfor %}",
    "{% for x in xs %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in xs %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in xs %}{% continue %}{% else %}else{% endfor %}",
    "{% for x in xs %}{% break %}{% else %}else{% endfor %}",
    "{% for x in xs %}{% for y in xs %}{% if y == 2 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{% endfor %}",
    "{% for x in xs %}{% for y in xs %}{{ loop.index }}{% endfor %}{{ loop.index }};{% endfor %}",
    "{% break %}",
    "{% for x in xs %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}",
    "{% for x in xs %}{% set y %}{% if loop.last %}{% break %}{% endif %}{{ x }}{% endset %}{{ y }}{% endfor %}",
    "{% for x in xs %}{% set loop = 1 %}{% endfor %}",
    "{% for loop in xs %}{% endfor %}",
    "{% set loop = 5 %}{{ loop }}",
    "{% for x in xs %}{{ x }}{% endfor %}",
    "{% for x in messages | map(attribute='role') %}{{ loop.index }}/{{ loop.length }} {{ x }} {{ loop.last }};{% endfor %}",
    "{% for x in messages | map(attribute='role') %}{{ x }}{{ loop.last }}{{ loop.length }};{% endfor %}",
    "{% set ns = namespace(on=true) %}{% for x in xs if ns.on %}{{ x }}{% set ns.on = false %}{% endfor %}",
    "{% set ns = namespace(on=true) %}{% for x in xs if ns.on %}{{ x }}{{ loop.last }}{% set ns.on = false %}{% endfor %}",
    "{% set ns = namespace(on=true) %}{% for x in xs if ns.on %}{{ loop.length }}{{ x }}{% set ns.on = false %}{% endfor %}",
    "{% set x = 1 %}{% for y in xs %}{{ x }}{% set x = y %}{{ x }} {% endfor %}{{ x }}",
    "{% for y in xs %}{% set z = y %}{% endfor %}{{ z }}",
    "{% set x = 1 %}{% if yes %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% if no %}{% set x = 2 %}{% endif %}{{ x is defined }}{{ x }}",
    "{% for y in xs %}{% if y == 1 %}{% set q = 'one' %}{% endif %}{{ q }}|{% endfor %}",
    "{% set a, b = 1, [2] %}{{ a }}{{ b }}",
    "{% set a, b = 1 %}",
    "{% set (a, b) = (1, 2) %}{{ a }}{{ b }}",
    "{% set ns = namespace(x=1) %}{% for y in xs %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }} {{ ns }}",
    "{% set ns = namespace() %}{% set ns.a, ns.b = 1, 2 %}{{ ns.a }}{{ ns.b }}{{ ns.c is defined }}",
    "{% set d.x = 1 %}",
    "{% set nope.x = 1 %}",
    "{% set x %}a {{ n }} b{% endset %}[{{ x }}]",
    "{% set x | upper | trim %} a{{ n }}b {% endset %}[{{ x }}]",
    "{% set x %}{% set y = 1 %}{{ y }}{% endset %}{{ x }}{{ y }}",
    "{% set ns = namespace() %}{% set ns.t %}q{% endset %}{{ ns.t }}",
    "{% set 1 = 2 %}",
    "{% set true = 2 %}",
    "{% set x = %}",
    "{% set x %}",
    "{% filter upper %}a{{ s }}{% endfilter %}",
    "{% filter replace('a', 'b') | upper %}banana{% endfilter %}",
    "{% filter nothing %}x{% endfilter %}",
    "{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}",
    "{% set a = 5 %}{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=4, a=0) }}{{ m(1, c=9) }}",
    "{% macro m(a) %}[{{ a }}{{ a is defined }}]{% endmacro %}{{ m() }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}",
    "{% macro m(a, a) %}{% endmacro %}",
    "{% macro m(a=1, b) %}{% endmacro %}",
    "{% macro m() %}{{ n }}{{ later }}{% endmacro %}{{ m() }}{% set later = 'L' %}{{ m() }}",
    "{% macro m(x) %}{% if x > 0 %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(5) }}",
    "{% macro m() %}x{% endmacro %}{{ m }} {{ m() | upper }} {{ m() is string }}",
    "{% macro m() %}{{ caller() }}!{% endmacro %}{% call m() %}body {{ n }}{% endcall %}",
    "{% macro m() %}{{ caller(1, 2) }}!{% endmacro %}{% call(a, b=3) m() %}{{ a }}{{ b }}{% endcall %}",
    "{% macro m() %}x{% endmacro %}{% call m() %}body{% endcall %}",
    "{% macro m() %}{{ caller }}{{ caller is defined }}{% endmacro %}{{ m() }}",
    "{% macro outer() %}{% call inner() %}{{ caller() }}{% endcall %}{% endmacro %}"
    "{% macro inner() %}<{{ caller() }}>{% endmacro %}{% call outer() %}x{% endcall %}",
    "{% call n %}{% endcall %}",
    "{% for x in xs %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}",
    "{% macro m() %}{% set x = 1 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}",
    "{% macro m(xs) %}{% for x in xs %}{{ x }}{% endfor %}{% endmacro %}{{ m([1, 2]) }}",
    "{% generation %}a{% set q = 1 %}{{ q }}{% endgeneration %}{{ q }}",
    "{% for x in xs %}{% generation %}{{ x }}{% endgeneration %}{% endfor %}",
    "{% for x in xs %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    "{%- generation -%} a {%- endgeneration -%} b",
    "{% raw %}{{ n }}{% if %}{% endraw %}|",
    "a  {%- raw -%}  {{ n }}  {%- endraw -%}  b",
    "{% raw %}x",
    "{% raw %}\n x\n{% endraw %}\ny",
    "{% print n, s %}",
    "{% print %}",
    "{% do xs.append(1) %}",
    "{% nothing %}",
    "{% endif %}",
    "{% if n %}",
    "{% if n %}{% endfor %}",
    "{% for x in xs %}",
    "{% if %}{% endif %}",
    "{% for in xs %}{% endfor %}",
    "{% for x of xs %}{% endfor %}",
    "{% if n: %}x{% endif %}",
    "{% set x = 1",
    "{{ n",
    "{{ n %}",
    "{% if n }}",
    "{#",
    "{# comment",
    "{# comment #}x{#- y -#} z",
    "{ { n } }",
    "{}",
    "{{}}",
    "{{ }}",
    "{%%}",
    "}} %} #}",
    "",
    "\n",
    "\n\n",
    "a\r\nb\rc\n",
    "text {{ n }}\n",
    "  {% if n %}\n  a\n  {% endif %}\n  b\n",
    "  {%+ if n %}\n  a\n  {%- endif %}\n  b\n",
    "x  {%- if n -%}  a  {%- endif -%}  y",
    "  {{ n }}  \n  {{- n -}}  \n  z",
    "  {{+ n }}",
    "a\n  {# c #}\nb",
    "a\n  {#- c -#}\nb",
    "a\n  {#+ c +#}\nb",
    "a {% if n %} b\n{% endif %} c",
    "a\n\t {% if n +%}\nb{% endif %}\n\n",
    "{% if n %}\r\nb\r\n{% endif %}\r\nc",
    "\xa0 {% if n %}x{% endif %}",
    "{{ 'a\nb' }}",
    "{{ 'a\r\nb' }}",
    "{{ '{{' }} {{ '%}' }} {{ \"}}\" }}",
    "{{ {'a': {'b': 1}}.a.b }}",
    "{{ {'a': {'b': 1}}}}",
    "{%if n%}{{-n-}}{%endif%}",
    "{{ n }}{{ s }}{{-''}}",
    "{% if n == 7 -%}\n\n  yes\n{%- endif %}",
    "{% for m in messages -%}\n{{ m.role }}\n{%- endfor %}",
    "{% set content = messages[1].content %}{{ content.strip() ~ '|' }}",
    "{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}{% else %}"
    "{% set loop_messages = messages %}{% endif %}{{ loop_messages | length }}",
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ loop.index0 }}{% endif %}{% endfor %}",
    "{% for m in messages[::-1] %}{% set index = (messages | length - 1) - loop.index0 %}{{ index }}{{ m.role }} {% endfor %}",
    "{{ '' if n else 'x' }}{{ raise_exception('bad role: ' + s) if no }}",
    "{{ raise_exception('bad\n role') }}",
    "{% if no %}{{ s | nothing }}{% endif %}ok",
    "{% if no %}{% for x in xs %}{{ s | nothing }}{% endfor %}{% endif %}ok",
    "{% if s is nothing %}{% endif %}",
    "{% for x in [] %}{{ s is nothing }}{% endfor %}",
    "{{ messages[2].tool_calls[0].arguments | tojson(indent=4) }}",
    "{%- for k, v in messages[1].items() %}\n  {{- k }}: {{ v | tojson }}\n{%- endfor %}",
    "{% set x = [] %}{% set x = x + [1] %}{% set x = x + [2] %}{{ x }}",
    "{% set o = {} %}{% set o = dict(o, a=1) %}{{ o }}",
]

OPERATORS = [" + ", " ~ ", " == ", " in ", " < ", " and ", " or ", " - ", " * ", " % ", " // ", " not in "]
SUFFIXES = [
    "|list", "|first", "|last", "|length", "|upper", "|title", "|trim", "|tojson", "|string", "|int", "|float", "|sort",
    "|unique|list", "|reverse", "|join(',')", "|map('string')|list", "|default('z', true)", "[0]", "[-1]", "[::-1]", "[1:3]",
    ".items()", ".role", "|dictsort", "|sum", "|max", "|min", "|round", "|abs", "|indent", "|replace('o', 'é')", "|capitalize",
    " is string", " is defined", " is iterable", " is mapping", "|e", "|safe", "|select|list", "|items|list", ".split()",
    ".upper()", ".keys()|list", ".get('b')", "|length|string",
]  # fmt: skip


def composed(rng) -> str:
    """Two or three of the expressions, filtered and put together."""
    out = f"({rng.choice(PLAIN)})"
    for _ in range(rng.randrange(1, 4)):
        out = out + rng.choice(SUFFIXES) if rng.random() < 0.6 else f"({out}{rng.choice(OPERATORS)}({rng.choice(PLAIN)}))"
    return out


PLAIN = [expression for expression in EXPRESSIONS if "{{" not in expression and "raise_exception" not in expression]

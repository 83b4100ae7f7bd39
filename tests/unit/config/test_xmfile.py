"""The text of a domain's file."""

from __future__ import annotations

import pytest

from pyxen.config.xmfile import MAX_FILE, parse, parse_value
from pyxen.errors import ConfigError


def values(text: str) -> dict[str, object]:
    return {key: setting.value for key, setting in parse(text, "f.cfg").settings.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a = "x"', "x"),
        ("a = 'it''s'", "its"),
        ('a = "x" "y" \'z\'', "xyz"),
        ('a = """x\ny"""', "x\ny"),
        (r'a = "\t\x41\u00e9\\"', "\tAé\\"),
        (r'a = r"\d"', r"\d"),
        (r'a = "\d"', r"\d"),
        ('a = u"é"', "é"),
        ("a = 0", 0),
        ("a = -5", -5),
        ("a = +5", 5),
        ("a = 0x1F", 31),
        ("a = 0o17", 15),
        ("a = 0b11", 3),
        ("a = 0644", 420),
        ("a = 00", 0),
        ("a = 256L", 256),
        ("a = 0x10l", 16),
        ("a = [0644, '0644', 07]  # 0644", [420, "0644", 7]),
        ("a = 1_000", 1000),
        ("a = 1.5", 1.5),
        ("a = True", True),
        ("a = None", None),
        ("a = [1, 'b', [2.5, None],]", [1, "b", [2.5, None]]),
        ("a = (1, 2)", (1, 2)),
        ("a = (1)", 1),
        ("a = ()", ()),
        ("a = [\n  'x', # one\n\n  'y'\n]", ["x", "y"]),
        ('a = "x" + \\\n  "y"', "xy"),
        ("a = 2 * 256 + 1", 513),
        ("a = 7 // 2 % 2", 1),
        ("a = 10 - 3", 7),
        ("a = 2 * 'ab'", "abab"),
        ("a = [1] * 2 + [3]", [1, 1, 3]),
        ("a = (1,) + (2,)", (1, 2)),
        ("a = 'ab' * -1", ""),
        ("a = 'vm%d' % 3", "vm3"),
        ("a = '%s-%02x %5.1f%%' % ('x', 10, 2.25)", "x-0a   2.2%"),
        ("a = b = 5", 5),
        ("a = 1; b = 2", 1),
        ("a = 1;", 1),
        ("a = 'x'\r\nb = 'y'\r\n", "x"),
        ("\ufeffa = 1", 1),
        ("   a = 1\n\tb = 2", 1),
        ("'''a docstring'''\npass\na = 1", 1),
        ("b = 2\na = b * 3", 6),
        ("a = 'x'\na += 'y'", "xy"),
    ],
)
def test_values(text: str, expected: object) -> None:
    found = values(text)["a"]
    assert found == expected
    assert type(found) is type(expected)


def test_order_and_places() -> None:
    parsed = parse('b = 1\n\n  é = "é"; a = 0644; c = 2\n', "f.cfg").settings
    assert list(parsed) == ["b", "é", "a", "c"]
    assert [(setting.line, setting.column) for setting in parsed.values()] == [(1, 1), (3, 3), (3, 12), (3, 22)]
    assert parsed["b"].place == "f.cfg:1"


def test_names_that_values_refer_to() -> None:
    assert parse("vmid = 3\nother = 4\nname = 'vm%d' % vmid", "f").used == {"vmid"}


def test_the_command_line_beats_the_file_for_helpers_too() -> None:
    parsed = parse("vmid = 3\nname = 'vm%d' % vmid", "f", {"vmid": 7})
    assert parsed.settings["name"].value == "vm7"
    assert "vmid" not in parsed.settings


def test_a_key_set_twice_is_reported_unless_read_between() -> None:
    assert parse("a = 1\na = 2", "f").warnings == ["f:2: a was set in line 1 already; the last one counts"]
    assert parse("a = 1\na = a + 2", "f").warnings == []
    assert parse("a = 1\na += 2", "f").warnings == []


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a = 1\nimport os", "2:1", "import is not allowed here"),
        ("if 1:\n  a = 2", "1:1", "if is not allowed here"),
        ("for a in 'b': pass", "1:1", "for is not allowed here"),
        ("def f(): pass", "1:1", "def is not allowed here"),
        ('print "x"', "1:1", "print is not allowed here"),
        ("a = open('/etc/passwd')", "1:5", "a function call is not allowed here"),
        ("__import__('os').system('x')", "1:1", "this is no KEY = VALUE line"),
        ("a = os.path", "1:5", "an attribute is not allowed here"),
        ("a = 'é', b'x'", "1:10", "bytes are not allowed here"),
        ("b = [1]\na = b[0]", "2:5", "an index is not allowed here"),
        ("a = f'{1}'", "1:5", "an f-string is not allowed here"),
        ("a = {}", "1:5", "a dictionary is not allowed here"),
        ("a = [x for x in 'a']", "1:5", "a loop is not allowed here"),
        ("a = 1 if 2 else 3", "1:5", "a condition is not allowed here"),
        ("a = lambda: 1", "1:5", "a function is not allowed here"),
        ("a = 2 ** 3", "1:5", "this operator is not allowed here"),
        ("a = ~1", "1:5", "this operator is not allowed here"),
        ("a = 1j", "1:5", "this kind of value is not allowed here"),
        ("a = ...", "1:5", "this kind of value is not allowed here"),
        ("a = web", "1:5", "web is not defined above"),
        ("a = b\nb = 1", "1:5", "b is not defined above"),
        ("a = true", "1:5", "true is not a value"),
        ("a += 1", "1:1", "a is not defined above"),
        ("a, b = 1, 2", "1:1", "only a single name may stand before ="),
        ("a.b = 1", "1:1", "only a single name may stand before ="),
        ("a: int = 1", "1:1", "this is not allowed here"),
        ("a = 'x' + 1", "1:5", "text + a number has no meaning"),
        ("a = 1 // 0", "1:5", "this can't be computed"),
        ("a = '%d' % 'x'", "1:5", "this can't be put into text"),
        ("a = '%s %s' % 'x'", "1:5", "this can't be put into text"),
        ("a = '%(x)s' % 1", "1:5", "this % in the text is no conversion"),
        ("a = '%*d' % (3, 4)", "1:5", "this % in the text is no conversion"),
        ("a = '%s' % ([1],)", "1:5", "a list can't be put into text"),
        ("\n\na = [1,\n", "3:5", "'[' was never closed"),
        ("a = 'x", "1:5", "unterminated string literal"),
        ("a = 512M", "1:7", "invalid decimal literal"),
        ("  a = 1\n  b = 1 2", "2:9", "invalid syntax"),
        ("a = 'b'\0", "1", "there is a null byte here"),
        ("a = '\\ud800'", "1:5", "half a surrogate pair"),
    ],
)
def test_refusals_name_the_place(text: str, place: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.cfg")
    assert str(caught.value).startswith(f"f.cfg:{place}: ")
    assert message in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "a = 9**9**9",
        "a = 'a' * 10000000000",
        "a = 'a' * 65537",
        "a = ['x' * 1000] * 1000",
        "a = [1] * 1025",
        "a = 99999999999 * 99999999999",
        "a = 18446744073709551616",
        "a = " + "9" * 5000,
        "a = 0" + "7" * 100_000,
        "a = 0x" + "f" * 100_000,
        "a = '%9999d' % 1",
        "a = '%.00000000000000000000099999d' % 1",
        "a = '%" + "0" * 60_000 + "' % 1",
        "a = '" + "%s" * 2000 + "' % (('a' * 100,) * 2000)",
        "a = " + "(" * 300,
        "a = " + "-" * 100_000 + "1",
        "a = " + "not " * 50_000 + "1",
        "a = " + "1+" * 100_000 + "1",
        "a = " + "x." * 100_000 + "x",
        "a = [1" + ",1" * 2000 + "]",
        "a = 1\n" + "a = [a]\n" * 2000,
        "a = 'x' * 60000\n" + "b = a\n" * 1000,
        "a = 1e999 // 1",
        "a" * (MAX_FILE + 1),
        "a = " + "[" * 50 + "]" * 50,
        '"""' + '\\"""' * 20_000,
    ],
    ids=lambda text: text[:24].replace("\n", " "),
)
def test_nothing_grows_without_bound(text: str) -> None:
    try:
        found = values(text)
    except ConfigError as error:
        assert len(str(error)) < 300
    else:
        assert text.startswith("a = 1e999")
        assert str(found["a"]) == "nan"


def test_one_value() -> None:
    assert parse_value("['a', \"b\"]", "word") == ["a", "b"]
    with pytest.raises(ConfigError):
        parse_value("['a'", "word")


def test_syntax_warnings_stay_inside(recwarn: pytest.WarningsRecorder) -> None:
    values(r'a = "\d" "\."')
    assert not recwarn.list

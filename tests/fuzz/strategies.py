"""What nobody should send, and somebody will: texts, JSON and events to make records of."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

# Texts that PostgreSQL holds, and that something between an invoice and a spreadsheet might take for an order.
TEXTS: Final = (
    "'; DROP TABLE transactions; --",
    'Robert"); DELETE FROM crypto_invoices;--',
    "\\'; SELECT pg_sleep(10); --",
    "$1 $2 $$ :name %s %(ids)s %% %",
    "{client_name} {identifier.__class__} {0} {",
    "[red]bold[/red] [/] [link=file:///etc/passwd]x[/link]",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "\x9b31m\x85next\x7f",
    'line\nbreak\r\n{"event":"forged","level":"error"}',
    "\u202egnp.exe\u202c \u200f\u200e\u061c \u2066x\u2069",
    "\u2028\u2029\ufeff\u200b\u200d",
    '=HYPERLINK("http://x","y")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1:A9)",
    "\t=1+1",
    '","","x',
    'NULL,{},{"a"},\\,\\"',
    '</script><script>alert("x")</script>',
    '"}],"amount_usd":1e9,"x":[{"y":"',
    "\\u0000 \\x00 \\0 \\ \\\\",
    "🏴‍☠️ e\u0301 ﷽ שלום 株式会社 ẞ İ",
    "0x" + "f" * 18,
    "  padded  ",
    "null",
)

texts: Final = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
"""Every text that a column can hold."""

wild_texts: Final = texts | st.text() | st.sampled_from(["\0", "\ud800", "a\0b", "\udcff\udcfe", "x" * 70_000])
"""And those that none can."""

numbers: Final = st.sampled_from([
    b"1e400", b"-1e400", b"1e99999999999999999999", b"1e-400", b"9" * 400, b"-" + b"9" * 10_000, b"0." + b"1" * 10_000,
    b"NaN", b"-Infinity", b"Infinity", b"00", b"1.", b"0x10", b"2147483647", b"2147483648", b"-1", b"0", b"42.0",
])  # fmt: skip

_scraps = st.one_of(
    numbers,
    st.sampled_from([b"null", b"true", b"false", b'""', b'"paid"', b'"PAID"', b'"sent"', b'"complete"', b"42", b"7"]),
    st.sampled_from([b'"\\u0000"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff\xfe"', b'"\x00"', b'"\n"', b'"', b"'x'"]),
    st.sampled_from([b'"__debezium_unavailable_value"', b'"crypto_invoices"', b'"crypto_clients"', b'"u"', b'"d"']),
    st.sampled_from([b"[" * depth + b"]" * depth for depth in (10, 900, 1_100, 100_000)]),
    st.sampled_from([b'{"after":' * depth + b"1" + b"}" * depth for depth in (10, 900, 100_000)]),
    st.binary(max_size=6),
)
_names = st.sampled_from([
    b'"op"', b'"id"', b'"status"', b'"state"', b'"after"', b'"before"', b'"source"', b'"table"', b'"payload"',
    b'"schema"', b'"ts_ms"', b'"__deleted"', b'"\\ud800"', b'"\xff"', b'""', b"1",
])  # fmt: skip


def _object(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b"{" + b",".join(name + b":" + value for name, value in pairs) + b"}"


json_bytes: Final = st.recursive(
    _scraps,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: b"[" + b",".join(parts) + b"]")
        | st.lists(st.tuples(_names, inner), max_size=5).map(_object)
    ),
    max_leaves=12,
)
"""Something like JSON: duplicate keys, numbers that nothing holds, brackets without end, broken characters."""


@st.composite
def near_events(draw: st.DrawFn) -> bytes:
    """An event of `crypto_invoices` with some members missing, doubled, or replaced by anything, in any wrapping."""

    def mutated(*pairs: tuple[bytes, bytes]) -> bytes:
        kept = [pair for pair in pairs if draw(st.integers(0, 9))]
        if not draw(st.integers(0, 2)):
            kept.insert(draw(st.integers(0, len(kept))), (draw(_names), draw(json_bytes)))
        return _object(kept)

    status = draw(st.sampled_from([b'"paid"', b'"sent"', b'"complete"', b'"__debezium_unavailable_value"']))
    value = mutated((b'"id"', b"42"), (b'"status"', status), (b'"amount_usd"', draw(json_bytes)))
    if draw(st.booleans()):
        source = mutated((b'"table"', draw(st.sampled_from([b'"crypto_invoices"', b'"crypto_clients"']))))
        op = draw(st.sampled_from([b'"c"', b'"u"', b'"r"', b'"d"', b'"t"', b'"m"']))
        value = mutated((b'"op"', op), (b'"before"', b"null"), (b'"after"', value), (b'"source"', source))
    if draw(st.booleans()):
        value = mutated((b'"schema"', draw(st.sampled_from([b"null", b'{"type":"struct"}']))), (b'"payload"', value))
    return value


records: Final = near_events() | json_bytes | st.binary(max_size=300)
"""The value, or the key, of a record that anybody may have written."""

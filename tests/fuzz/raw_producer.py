"""Records that Kafka takes and confluent-kafka's producer would not make: header names that are no UTF-8."""

from __future__ import annotations

import ctypes

from confluent_kafka import cimpl

_TOPIC, _VALUE, _KEY, _FLAGS, _HEADER = 1, 4, 5, 7, 9  # rd_kafka_vtype_t
_COPY = 2  # RD_KAFKA_MSG_F_COPY


class _Bytes(ctypes.Structure):
    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_size_t))


class _Header(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p), ("size", ctypes.c_ssize_t))


class _Either(ctypes.Union):
    _fields_ = (
        ("text", ctypes.c_char_p), ("number", ctypes.c_int), ("bytes", _Bytes), ("header", _Header),
        ("padding", ctypes.c_char * 64),
    )  # fmt: skip


class _Argument(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int), ("value", _Either))


def produce(servers: str, topic: str, value: bytes, key: bytes, header_name: bytes, header_value: bytes) -> None:
    """Write one record, through librdkafka itself, and wait until the broker has it."""
    library = ctypes.CDLL(cimpl.__file__)  # what it is linked with is found in it
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_produceva"):
        getattr(library, name).restype = ctypes.c_void_p
    why = ctypes.create_string_buffer(512)
    config = ctypes.c_void_p(library.rd_kafka_conf_new())
    library.rd_kafka_conf_set(config, b"bootstrap.servers", servers.encode(), why, ctypes.c_size_t(len(why)))
    producer = ctypes.c_void_p(library.rd_kafka_new(0, config, why, ctypes.c_size_t(len(why))))
    assert producer.value, why.value
    try:
        arguments = (_Argument * 5)(
            _Argument(_TOPIC, _Either(text=topic.encode())),
            _Argument(_VALUE, _Either(bytes=_Bytes(value, len(value)))),
            _Argument(_KEY, _Either(bytes=_Bytes(key, len(key)))),
            _Argument(_FLAGS, _Either(number=_COPY)),
            _Argument(_HEADER, _Either(header=_Header(header_name, header_value, len(header_value)))),
        )
        assert library.rd_kafka_produceva(producer, arguments, ctypes.c_size_t(len(arguments))) is None
        assert library.rd_kafka_flush(producer, 10_000) == 0
    finally:
        library.rd_kafka_destroy(producer)

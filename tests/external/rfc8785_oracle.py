"""Reads documents, each behind its length in four bytes. Answers each with the length and the bytes of its RFC 8785
form, made by an implementation that shares nothing with the gateway's; or, where it refuses the document, with
0xffffffff and then why. As strict as the gateway: no member twice, no number but integers within 2^53 - 1."""

import json
import struct
import sys

import rfc8785

LARGEST = 2**53 - 1


def members(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member stands twice")
    return found


def integer(text):
    number = int(text)
    if text == "-0" or abs(number) > LARGEST:
        raise ValueError("not an integer that all readers agree on")
    return number


def refuse(_text):
    raise ValueError("not an integer")


READER = json.JSONDecoder(object_pairs_hook=members, parse_int=integer, parse_float=refuse, parse_constant=refuse)


def form(document):
    value = READER.decode(document.decode("utf-8", "strict"))
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return rfc8785.dumps(value)


def main():
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(4):
        document = source.read(*struct.unpack(">I", head))
        try:
            answer = form(document)
            sink.write(struct.pack(">I", len(answer)))
        except ValueError as fault:
            answer = str(fault).encode()
            sink.write(struct.pack(">II", 0xFFFFFFFF, len(answer)))
        sink.write(answer)


main()

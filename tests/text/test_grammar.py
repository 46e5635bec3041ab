"""Grammars that cannot be followed: one line that says why, and never the end of the process."""

import random
import threading

import pytest

from atp_cpp._core import AtpError, check_grammar
from atp_cpp.options.plan import SamplingConfig
from support.mutations import mutated

JSON = r"""
root ::= object  # a comment with "quotes" and (brackets
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
GRAMMARS = [
    JSON,
    'root ::= "yes" | "no"',
    'root ::= (item "\\n"){1,20}\nitem ::= "- " [^\\n]+',
    'root ::= [a-zA-Z ]{3,40} ("." | "!")? end\nend ::= "" | .',
    "root ::= a-b*\r\na-b ::= [\\u00e9\\U0001F600äöü-] [^日本]",
]


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_these_can_be_followed(grammar):
    check_grammar(grammar)
    assert SamplingConfig(grammar=grammar).engine_options()["grammar"] == grammar


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ("", "there is no rule 'root'"),
        ("  # nothing\n", "there is no rule 'root'"),
        ('start ::= "a"', "there is no rule 'root', where it begins"),
        ('root ::= "a" other', "there is no rule 'other'"),
        ('root = "a"', "line 1: expecting ::= at '= \"a\"'"),
        ('root ::= "a"\n\nb ::= "open', "unexpected end of input"),
        ('root ::= "a"\n  | "b"', "line 2: expecting name at '| \"b\"'"),
        ('root ::= ("a"', "expecting ')'"),
        ('root ::= "a")', "expecting newline or end at ')'"),
        ("root ::= * 'a'", "expecting preceding item"),
        ('root ::= "\\q"', "unknown escape"),
        ('root ::= "\\x0"', "expecting 2 hex chars"),
        ('{"type": "object"}', "expecting name"),
        ("root ::= <think>", "names a token"),
        ('root ::= !<[5]> "a"', "names a token"),
        ('root ::= "a\0"', "NUL"),
        ("root ::= root", "rule 'root' begins with itself"),
        ('root ::= a\na ::= b "x" | "y"\nb ::= a', "begins with itself"),
        # llama.cpp alone never ends at this one: it does not see that b can be nothing
        ('root ::= b root "x" | "y"\nb ::= c\nc ::= ""', "rule 'root' begins with itself"),
        ('root ::= ("a"?)* "b"', "begins with itself"),
        ('root ::= "a"{0,1000000}', "repeats something 1000000 times; at most 2000"),
        ('root ::= "a"{1000000}', "repeats something 1000000 times"),
        ('root ::= "a"{99999999999999999999999}', "at most 2000"),
        ('root ::= "a"{2001,}', "at most 2000"),
        ('root ::= "a"{5,3}', "at least 5 and at most 3"),
        ('root ::= ("a"{2000}){2000}' * 100, "written out"),
        ('root ::= "' + "long" * 1000 + '"{2000}', "written out"),
        ('root ::= (("a"{1,100}){1,100}){1,100}', "exceeds sane defaults"),
        ("root ::= " + "(" * 100000 + '"a"' + ")" * 100000, "brackets more than 200 deep"),
        ("root ::= " + '"a" ' * 100000, "bytes; at most 262144"),
        ("root ::= " + '"a" ' * 60000 + "b", "there is no rule 'b'"),
    ],
)
def test_these_cannot(grammar, says):
    with pytest.raises(AtpError) as caught:
        check_grammar(grammar)
    message = str(caught.value)
    assert says in message
    assert message.startswith("grammar")
    assert "\n" not in message and len(message) < 500


def chain(n, link):
    """n rules, each made of the next one by `link`."""
    rules = [f"r{i} ::= {link.format(f'r{i + 1}')}" for i in range(n)]
    return "\n".join(["root ::= r0", *rules, f'r{n} ::= "a"'])


@pytest.mark.parametrize(
    "grammar",
    [
        chain(5000, "{0}"),
        chain(40, "{0} | {0}"),  # 2^40 ways through it
        chain(40, '{0} "a" | {0} "b"'),  # 2^40 ways to begin
        chain(300, "{0}? {0}"),
        "root ::= " + " ".join(["a?"] * 20000) + '\na ::= "x"',
    ],
)
def test_too_many_ways_to_begin(grammar):
    with pytest.raises(AtpError, match="too many ways to begin rule"):
        check_grammar(grammar)


def test_the_deepest_that_is_taken_fits_a_small_stack():
    grammars = [
        chain(990, "{0}"),
        "root ::= " + "(" * 199 + '"a"' + ")" * 199,
        'root ::= ("a" | "b"?){0,400} "c"',
    ]
    failed = []

    def check():
        try:
            for grammar in grammars:
                check_grammar(grammar)
        except AtpError as error:
            failed.append(error)

    before = threading.stack_size(1 << 20)
    try:
        thread = threading.Thread(target=check)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert not failed


def test_2000_random_mutations_end_in_an_error_or_not_at_all():
    rng = random.Random(5)
    alphabet = [*'"[]{}()<>|*+?.:=#\\-,!^ \n', "root", "ws", "{0,", "::=", "é", "\U0001f600"]
    outcomes, n_lines = {True: 0, False: 0}, 0
    for i in range(2000):
        text = mutated(GRAMMARS[i % len(GRAMMARS)], rng, alphabet)
        try:
            check_grammar(text)
            outcomes[True] += 1
        except AtpError as error:
            outcomes[False] += 1
            n_lines = max(n_lines, 1 + str(error).count("\n"))
    assert n_lines == 1
    assert min(outcomes.values()) > 200, "the mutations must reach both ends"

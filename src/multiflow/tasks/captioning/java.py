"""The Java programs inside ``pycocoevalcap``: Stanford's PTB tokenizer, METEOR 1.5, SPICE.

The package starts them in a way that goes wrong silently or for ever: its tokenizer writes beside the package, gives
every later caption to the wrong image when one holds a carriage return, and does not look whether Java failed; METEOR
waits for its own lock after an error, and fails where the language writes decimal commas. So these two are started
here, with the same jars, the same arguments and the same results.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE, CalledProcessError, Popen
from tempfile import TemporaryFile

from multiflow.base.errors import MultiflowError

JAVA = ["java", "-Dfile.encoding=UTF-8", "-Duser.language=en"]
LINE_BREAKS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """Return each text as its words in lower case, one space between them, without punctuation.

    Raises:
        MultiflowError: Java cannot be started or fails.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer as official

    jar = Path(official.__file__).with_name(official.STANFORD_CORENLP_3_4_1_JAR)
    command = [*JAVA, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = "".join(f"{LINE_BREAKS.sub(' ', text)}\n" for text in texts)
    try:
        done = subprocess.run(command, input=lines.encode(errors="replace"), capture_output=True)
    except OSError as error:
        raise _failed("the PTB tokenizer", str(error)) from error
    tokenized = done.stdout.decode(errors="replace").split("\n")[:-1]
    if done.returncode or len(tokenized) != len(texts):
        raise _failed("the PTB tokenizer", done.stderr.decode(errors="replace"))
    dropped = frozenset(official.PUNCTUATIONS)
    return [" ".join(word for word in line.rstrip().split(" ") if word not in dropped) for line in tokenized]


def meteor(targets: Mapping[int, Sequence[str]], hypotheses: Mapping[int, Sequence[str]]) -> float:
    """Return METEOR of a set, 0 to 1: statistics of one caption after the other, then the score of all of them.

    Args:
        targets: number of an image -> its tokenised references.
        hypotheses: the same numbers -> a list with the tokenised caption.

    Raises:
        MultiflowError: Java cannot be started or fails.
    """
    from pycocoevalcap.meteor import meteor as official

    jar = Path(official.__file__).with_name(official.METEOR_JAR)
    with _talk_to("METEOR", [*JAVA, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]) as talk:
        found = [talk(" ||| ".join(["SCORE", *targets[i], hypotheses[i][0].replace("  ", " ")]), 1) for i in targets]
        return float(talk(" ||| ".join(["EVAL", *found]), len(found) + 1))


def spice(targets: Mapping[int, Sequence[str]], hypotheses: Mapping[int, Sequence[str]]) -> float:
    """Return SPICE of a set, 0 to 1, as the package runs it; arguments as of `meteor`.

    Raises:
        MultiflowError: the Java program fails; it was written for Java 8.
    """
    from pycocoevalcap.spice.spice import Spice

    try:
        value, _ = Spice().compute_score(targets, hypotheses)
    except (CalledProcessError, OSError) as error:
        raise MultiflowError(f"SPICE failed ({error}); it was written for Java 8, name the other metrics") from error
    return float(value)


def missing_spice_jars() -> list[Path]:
    """Return the files that SPICE needs and the package does not bring, those that are not there."""
    from pycocoevalcap.spice import get_stanford_models as official

    folder = Path(official.SPICEDIR, official.SPICELIB)
    jars = [folder / f"{official.JAR}.jar", folder / f"{official.JAR}-models.jar"]
    return [jar for jar in jars if not jar.is_file()]


@contextmanager
def _talk_to(name: str, command: list[str]) -> Iterator[Callable[[str, int], str]]:
    """Start a program that answers lines with lines, and give a function ``(line, answers) -> the last of them``.

    The program is gone after the block.
    """
    with TemporaryFile() as complaints:
        try:
            program = Popen(command, stdin=PIPE, stdout=PIPE, stderr=complaints)
        except OSError as error:
            raise _failed(name, str(error)) from error
        assert program.stdin is not None
        assert program.stdout is not None
        to, back = program.stdin, program.stdout

        def talk(line: str, answers: int) -> str:
            with suppress(BrokenPipeError):  # then there is no answer either
                to.write(f"{line}\n".encode(errors="replace"))
                to.flush()
            replies = [back.readline() for _ in range(answers)]
            if not replies[-1].endswith(b"\n"):
                program.wait()
                complaints.seek(0)
                raise _failed(name, complaints.read().decode(errors="replace"))
            return replies[-1].decode().strip()

        with program:
            try:
                yield talk
            finally:
                program.kill()
                with suppress(BrokenPipeError):
                    to.close()


def _failed(name: str, said: str) -> MultiflowError:
    first = next((line for line in said.splitlines() if line.strip()), "it said nothing")
    return MultiflowError(f"{name}, a Java program, failed ({first.strip()}); check that 'java -version' works")

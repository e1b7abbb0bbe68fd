"""``trimtab chat``: answers, commands, and what stays after a mistake."""

from __future__ import annotations

import io

import pytest

import tiny_guides
from engine.blends import save_conditioned
from trimtab.cli.chat import ChatSession
from trimtab.cli.main import main
from trimtab.decoding.config import Sampling
from trimtab.engine import Guidance, load
from trimtab.models import load_base

GREEDY = Sampling(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def guide(llama_folder, tmp_path_factory):
    return tiny_guides.save_lora_guide(tmp_path_factory.mktemp("guides") / "manners", llama_folder)


@pytest.fixture(scope="module")
def engine(llama_folder, guide):
    return load(llama_folder, [guide], dtype="float32")


class Talk:
    def __init__(self, engine, **options):
        self.shown, self.told = [], []
        self.session = ChatSession(engine, Guidance(), GREEDY, show=self.shown.append, tell=self.told.append, **options)

    def say(self, line):
        self.shown.clear()
        self.told.clear()
        assert self.session.handle(line)
        return "".join(self.shown)


def _answer(engine, turns, guidance):
    return engine.generate(turns, guidance=guidance, sampling=GREEDY)[0].text + "\n"


def test_the_conversation_grows_and_strength_changes_it(engine):
    talk = Talk(engine, system="be")
    turns = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    assert talk.say("hi") == _answer(engine, turns, None)
    turns += [{"role": "assistant", "content": talk.session.turns[-1]["content"]}, {"role": "user", "content": "more"}]
    talk.say("/strength -2")
    assert talk.told == ["Steering: manners=-2 (strength -2)."]
    assert talk.say("more") == _answer(engine, turns, -2)
    assert talk.say("/plain") == _answer(engine, turns, 0)
    talk.say("/weights polite=0.5")
    assert talk.told == ["Steering: manners=-1 (strength -2)."]
    talk.say("/reset")
    assert talk.session.turns == turns[:1]


def test_a_preference_changes_while_talking(llama_folder, tmp_path):
    save_conditioned(load_base(str(llama_folder), dtype="float32"), tmp_path / "uni", "moslora-text")
    engine = load(llama_folder, [tmp_path / "uni"], dtype="float32")
    talk = Talk(engine)
    turns = [{"role": "user", "content": "hi"}]
    assert talk.say("hi") == _answer(engine, turns, None)
    talk.say("/weights helpful=0.7,harmless=0.3")
    assert talk.told == ["Steering: uni=1 (helpful 0.7, harmless 0.3) (strength 1)."]
    talk.say("/weights uni=1,helpful=1")
    assert "same guide" in talk.told[0]
    talk.say("/reset")
    assert talk.say("hi") == _answer(engine, turns, {"helpful": 0.7, "harmless": 0.3})
    talk.say("/weights concise=2")
    assert talk.told == ["Steering: uni=2 (concise 1) (strength 1)."]
    talk.say("/strength 0")
    assert talk.told == ["Steering: uni=0 (strength 0)."]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/strenght 1", "Did you mean 'strength'"),
        ("/strength much", "takes a number"),
        ("/strength nan", "strength is nan"),
        ("/weights nobody=1", "no guide or objective 'nobody'"),
        ("/weights polite", "NAME=NUMBER"),
        ("/plain", "say something first"),
        ("x" * 600, "/reset forgets"),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(engine, line, message):
    talk = Talk(engine)
    before = talk.session.steering()
    talk.say(line)
    assert len(talk.told) == 1
    assert message in talk.told[0]
    assert talk.session.steering() == before
    assert talk.session.turns == []


def test_piped_input_reaches_the_end(capsys, monkeypatch, llama_folder, guide, engine):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n\n/help\n/quit\nnever\n"))
    main_arguments = ["chat", "--base", llama_folder, "--guide", guide, "--temperature", 0, "--max-tokens", 6]
    with pytest.raises(SystemExit) as leave:
        main([str(a) for a in [*main_arguments, "--dtype", "float32"]])
    captured = capsys.readouterr()
    assert not leave.value.code
    assert captured.out == _answer(engine, [{"role": "user", "content": "hi"}], None)
    assert "/strength X" in captured.err
    assert "manners=1 (strength 1)" in captured.err


def test_wrong_flags(capsys, llama_folder):
    with pytest.raises(SystemExit) as leave:
        main(["chat", "--base", str(llama_folder), "--n", "2"])
    assert leave.value.code == 1
    assert "use 'trimtab generate'" in capsys.readouterr().err

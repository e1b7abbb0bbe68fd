"""Presets files: what they mean, and everything that is wrong with one is found when the server starts."""

from __future__ import annotations

import pytest

from trimtab.engine import Guidance
from trimtab.errors import ConfigError
from trimtab.serving.presets import Presets


@pytest.fixture(scope="module")
def guides(engine):
    return list(engine.guides.values())


@pytest.fixture
def load(tmp_path, guides):
    def read(text, **options):
        file = tmp_path / "presets.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Presets.load(file, options.pop("guides", guides), **options)

    return read


def test_a_file(load):
    presets = load(
        "default: {strength: 0.5}\n"
        "balanced:\n  weights: {helpful: 0.5, values/harmless: 0.5}\n  description: Both alike.\n"
        "away: {weights: {polite: -2}}\n"
    )
    assert presets.default == Guidance(strength=0.5)
    assert presets.named["balanced"] == Guidance(weights={"helpful": 0.5, "values/harmless": 0.5})
    assert presets.named["away"].weights == {"polite": -2}
    assert presets.descriptions == {"balanced": "Both alike."}
    assert Presets({}).default is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {weights: {kindness: 1}}", "preset 'a' of .* no guide or objective 'kindness'"),
        ("a: {weights: {helpfull: 1}}", "Did you mean 'helpful'"),
        ("a: {weights: {polite: .nan}}", "nan"),
        ("a: {strength: .inf}", "inf"),
        ("a: {strength: 1e308, weights: {polite: 1e308}}", "come to inf"),
        ("a: {strength: yes please}", "strength"),
        ("a: {weights: [1, 2]}", "weights"),
        ("a: {weight: {polite: 1}}", "Unknown key 'weight' .* Did you mean 'weights'"),
        ("a: {weights: {values: 1, helpful: 1}}", "same guide"),
        ("a: 1", "must be a mapping"),
        ("a:", "must be a mapping"),
        ("plain: {strength: 1}", "always means the plain base"),
        ("A: {strength: 1}", "a-z"),
        ("'a:b': {strength: 1}", "a-z"),
        ("'': {strength: 1}", "a-z"),
        (f"{'x' * 65}: {{strength: 1}}", "64"),
        ("a: {strength: 1}\na: {strength: 2}", "'a' twice .line 2"),
        ("a: {strength: 1, strength: 2}", "'strength' twice"),
        ("a: &a {weights: *a}", "alias"),
        ("x: &x [1,1,1]\ny: &y [*x,*x,*x]\na: [*y,*y]", "alias"),
        ("- a\n- b", "mapping of names"),
        ("", "mapping of names"),
        ("a: {strength: 1", "cannot be read"),
        ("a: !!python/object/apply:os.system [echo]", "cannot be read"),
        ("[" * 5000, "cannot be read"),
        (b"\xff\xfea", "cannot be read"),
        ("# " + "x" * 2**20, "longer than"),
        ("a: {description: 5}", "description"),
    ],
)
def test_what_is_refused(load, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_other_refusals(load, tmp_path, guides):
    with pytest.raises(ConfigError, match="come to 6"):
        load("a: {weights: {polite: 4, helpful: 2}}", most=5)
    with pytest.raises(ConfigError, match="no guide is loaded"):
        load("a: {weights: {polite: 4}}", guides=[])
    with pytest.raises(ConfigError, match="cannot be read"):
        Presets.load(tmp_path / "none.yaml", guides)
    with pytest.raises(ConfigError, match="1001 presets"):
        load("".join(f"p{i}: {{strength: 1}}\n" for i in range(1001)))

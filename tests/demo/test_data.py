"""The grammar, the palette and the renderer."""

import itertools

import numpy as np
import pytest

from wan_tpu.demo import data


def test_grammar_has_216_scenes_and_every_prompt_parses_back():
    scenes = data.all_scenes()
    assert len(scenes) == len(set(scenes)) == 216
    assert [data.parse_prompt(scene.prompt) for scene in scenes] == scenes


def test_parse_prompt_ignores_case_and_a_full_stop():
    scene = data.parse_prompt("A Red circle moving LEFT on a black background.")
    assert scene == data.Scene(color="red", shape="circle", direction="left", background="black")


@pytest.mark.parametrize(
    "prompt",
    ["", "a red circle", "a pink circle moving left on a black background", "a cat on a mat"],
)
def test_parse_prompt_refuses_what_is_outside_the_grammar(prompt):
    with pytest.raises(ValueError, match="COLOR SHAPE moving"):
        data.parse_prompt(prompt)


def test_scene_refuses_an_unknown_word():
    with pytest.raises(ValueError, match="'pink' is not one of red"):
        data.Scene(color="pink", shape="circle", direction="left", background="black")


def test_colors_are_far_apart_on_every_background():
    everything = data.COLORS | data.BACKGROUNDS
    for (first, a), (second, b) in itertools.combinations(everything.items(), 2):
        if {first, second} <= set(data.BACKGROUNDS):
            continue  # a background is never beside another
        assert np.linalg.norm(np.subtract(a, b)) >= 140, (first, second)


def test_clip_has_the_documented_form_and_varies_with_the_seed():
    scene = data.all_scenes()[0]
    clip = data.make_clip(scene, np.random.default_rng(0))
    assert clip.shape == (data.CLIP_FRAMES, data.CLIP_SIZE, data.CLIP_SIZE, 3)
    assert clip.dtype == np.float32
    assert 0 <= clip.min() <= clip.max() <= 1
    assert np.array_equal(clip, data.make_clip(scene, np.random.default_rng(0)))
    assert not np.array_equal(clip, data.make_clip(scene, np.random.default_rng(1)))


@pytest.mark.parametrize("shape", data.SHAPES)
def test_coverage_has_the_area_of_the_shape(shape):
    size = 12.0
    area = {"circle": np.pi * size**2, "square": (2 * 0.92 * size) ** 2, "triangle": 2 * size**2}
    coverage = data.shape_coverage(shape, np.array([[31.3, 32.8]]), size)
    assert coverage.sum() == pytest.approx(area[shape], rel=0.02)


@pytest.mark.parametrize(("direction", "step"), list(data.DIRECTIONS.items()))
def test_centroid_goes_where_the_direction_says(direction, step):
    scene = data.Scene(color="white", shape="circle", direction=direction, background="black")
    clip = data.make_clip(scene, np.random.default_rng(0))[..., 0]
    grid = np.arange(data.CLIP_SIZE)
    x = (clip.sum(axis=1) @ grid) / clip.sum(axis=(1, 2))
    y = (clip.sum(axis=2) @ grid) / clip.sum(axis=(1, 2))
    way = np.array([x[-1] - x[0], y[-1] - y[0]])
    low, high = data.TRAVEL_RANGE
    assert low - 1 <= way @ step <= high + 1
    assert abs(way @ np.array(step)[::-1]) < 0.5

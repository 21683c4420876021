"""The service's own requests: one for each way that a model can be asked, the probe with bytes."""

import pytest

from server.engine.samples import sample_media, sample_requests
from wan_tpu import family
from wan_tpu.checkpoints.models import KNOWN_MODELS, describe_model
from wan_tpu.image.picture import read_picture
from wan_tpu.pipeline.check import check_request
from wan_tpu.request import VideoRequest

KINDS = [kind for kind in vars(family).values() if isinstance(kind, family.ModelKind)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.words)
def test_each_way_is_compiled(kind):
    requests = sample_requests(kind, VideoRequest(prompt="x", width=64, height=64, num_frames=5))
    assert [frozenset(each.media) for each in requests] == list(kind.inputs)
    assert all(each.num_frames == 5 for each in requests)


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_the_probe_of_every_model_has_what_it_needs(name):
    """Red when the service's own small video is refused by a model that needs a picture."""
    model = describe_model(name)
    request = sample_requests(model.kind, VideoRequest(prompt="x"))[0]
    media = sample_media(request)
    complete, _ = check_request(model, request, media)
    assert set(request.media.values()) == set(media)
    assert all(read_picture(data).shape == (64, 64, 3) for data in media.values())
    assert check_request(model, complete)[0] == complete, "complete, it needs no bytes any more"

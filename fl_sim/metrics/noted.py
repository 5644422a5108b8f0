"""Numbers that are not measured here but said by whoever did the work: training, attack, defence.

They stand in a run's table beside what is measured, so what they mean is said here.
"""

import math

from fl_sim.metrics.vocabulary import HIGHER_LEAKS, LOWER_BETTER, METRICS, Metric

METRICS.register("images_written", "images in a payload")(
    Metric(
        "Images written",
        "sent",
        HIGHER_LEAKS,
        format="count",
        range=(0.0, math.inf),
        shown=(),
        order=10,
    )
)
METRICS.register("payload_bytes", "bytes of a payload")(
    Metric(
        "Payload",
        "sent",
        unit="bytes",
        format="bytes",
        range=(0.0, math.inf),
        shown=(),
        order=20,
    )
)
METRICS.register("capacity_bytes", "bytes that a carrier holds")(
    Metric(
        "Capacity",
        "sent",
        unit="bytes",
        format="bytes",
        range=(0.0, math.inf),
        shown=(),
        order=30,
    )
)
METRICS.register("expected_bytes", "bytes that a rehearsal says will come through a release")(
    Metric(
        "Expected through",
        "sent",
        unit="bytes",
        range=(0.0, math.inf),
        shown=(),
        order=35,
    )
)
METRICS.register("code_rate", "bytes of a payload over bytes with error correction")(
    Metric("Code rate", "sent", range=(0.0, 1.0), shown=(), order=40)
)
METRICS.register("dp_epsilon", "what private training has spent, by the accountant")(
    Metric(
        "Epsilon",
        "privacy",
        LOWER_BETTER,
        range=(0.0, math.inf),
        shown=("summary",),
        order=10,
    )
)
METRICS.register("pate_epsilon", "what a release tells of one hospital, by noise on votes (PATE)")(
    Metric("Epsilon of a release", "privacy", LOWER_BETTER, range=(0.0, math.inf), order=12)
)
METRICS.register("pate_epsilon_total", "the same of all releases of a federation so far")(
    Metric(
        "Epsilon of all releases so far",
        "privacy",
        LOWER_BETTER,
        range=(0.0, math.inf),
        shown=("summary",),
        order=14,
    )
)
METRICS.register("cap_bytes_of_one", "the most bytes of these that one hospital's votes can tell")(
    Metric(
        "Cap of what one hospital's votes can tell",
        "privacy",
        LOWER_BETTER,
        unit="bytes",
        format="bytes",
        digits=0,
        range=(0.0, math.inf),
        order=25,
    )
)
METRICS.register("cap_bytes", "the most bytes that can have passed into a release, by anybody")(
    Metric(
        "Cap of what can have passed",
        "privacy",
        LOWER_BETTER,
        unit="bytes",
        format="bytes",
        digits=0,
        range=(0.0, math.inf),
        heading="cap\nbytes",
        word="cap",
        order=20,
    )
)
METRICS.register("cap_bytes_total", "the same of all releases of a federation so far")(
    Metric(
        "Cap over all rounds so far",
        "privacy",
        LOWER_BETTER,
        unit="bytes",
        format="bytes",
        digits=0,
        range=(0.0, math.inf),
        heading="cap, all\nrounds",
        shown=("run", "summary"),
        word="cap over all rounds",
        order=30,
    )
)
METRICS.register("seconds", "time that training or a defence took")(
    Metric(
        "Seconds",
        "cost",
        LOWER_BETTER,
        unit="seconds",
        digits=1,
        brief=0,
        range=(0.0, math.inf),
        shown=(),
        order=10,
    )
)
METRICS.register("held_out_images", "held-out images that a defence used")(
    Metric(
        "Held-out images used",
        "cost",
        LOWER_BETTER,
        format="count",
        range=(0.0, math.inf),
        shown=(),
        order=20,
    )
)
METRICS.register("hospitals", "hospitals whose reply was averaged")(
    Metric(
        "Hospitals that replied",
        "cost",
        format="count",
        range=(0.0, math.inf),
        shown=(),
        order=30,
    )
)
METRICS.register("failed", "a hospital that was left out of a round counts 1")(
    Metric(
        "Hospitals left out",
        "cost",
        format="count",
        range=(0.0, math.inf),
        shown=(),
        order=40,
    )
)
METRICS.register("withheld", "uploads that their hospitals' doors withheld")(
    Metric(
        "Withheld at the door",
        "cost",
        format="count",
        range=(0.0, math.inf),
        shown=(),
        order=50,
    )
)
METRICS.register("update_norm", "L2 norm of an upload less the broadcast, on average")(
    Metric("Norm of an update", "cost", range=(0.0, math.inf), shown=(), order=60)
)
METRICS.register("file_bytes", "bytes of the model file")(
    Metric(
        "Model file",
        "file",
        unit="bytes",
        format="bytes",
        range=(0.0, math.inf),
        shown=(),
        order=10,
    )
)
METRICS.register("sealed_bytes", "bytes of the files that leave where the head is encrypted")(
    Metric(
        "Sealed model",
        "file",
        unit="bytes",
        format="bytes",
        range=(0.0, math.inf),
        shown=(),
        order=15,
    )
)
METRICS.register("key_bytes", "bytes of an attacker's key file")(
    Metric(
        "Key file",
        "file",
        unit="bytes",
        format="bytes",
        range=(0.0, math.inf),
        shown=(),
        order=20,
    )
)
METRICS.register("permuted_share", "share of parameters that a defence's permutations can move")(
    Metric("Parameters that can be permuted", "other", range=(0.0, 1.0), shown=(), order=10)
)

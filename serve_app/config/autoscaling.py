"""Settings of the autoscaling policy, its `policy_kwargs` in the YAML file."""

from pydantic import Field

from serve_app.config.section import Section

#: The policy's import path, `policy_function` in the YAML file.
TOKEN_POLICY = "serve_app.autoscale:TokenPolicy"


class PolicySettings(Section):
    """`policy_kwargs` of `TokenPolicy`: what it is to achieve."""

    location = "Embedder: autoscaling_config.policy.policy_kwargs"

    headroom: float = Field(
        default=0.3,
        ge=0,
        le=10,
        description="Spare capacity for interactive texts, relative to their arrival: 0.3 is 30 %.",
    )
    target_queue_s: float = Field(
        default=0.5,
        gt=0,
        le=3600,
        description="The objective: interactive texts wait no longer than this. While one does, "
        "replicas are added, whatever the arrivals.",
    )
    drain_target_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="Time in which queued interactive texts are computed, in addition to those "
        "that arrive.",
    )
    bulk_drain_target_s: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="Time in which queued bulk texts are computed.",
    )
    max_bulk_replicas: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="Bulk texts raise the number of replicas to this at most. null: to "
        "`max_replicas`.",
    )
    min_idle_replicas: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Standby: replicas beyond those that the load needs, at all times, up to "
        "`max_replicas`. A sudden load finds them ready.",
    )
    scale_to_zero_after_s: float = Field(
        default=300.0,
        ge=1,
        le=366 * 24 * 3600,
        description="With `min_replicas: 0`, how long no text must have come before the last "
        "replica leaves. The next text starts one, and waits for it: see `wake_up_timeout_s`. With "
        "`min_idle_replicas` the last replica never leaves.",
    )
    downscale_delay_s: float = Field(
        default=30.0,
        ge=0,
        le=86_400,
        description="How long a replica must not have been needed before it leaves. Ray's own "
        "`upscale_delay_s` and `downscale_delay_s` come on top: set both to 0.",
    )
    downscale_interval_s: float = Field(
        default=3.0,
        ge=0,
        le=86_400,
        description="Time between two replicas that leave.",
    )
    downscale_margin: float = Field(
        default=0.1,
        ge=0,
        le=10,
        description="Added to `headroom` where a replica is to leave, so that fluctuations don't "
        "start it again.",
    )
    default_startup_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="How long a replica takes to start, until one has reported it.",
    )
    cluster_grows: bool = Field(
        default=False,
        description="Whether Ray's cluster autoscaler adds nodes for replicas that wait for "
        "resources. false: the policy asks for as many replicas as the nodes have resources for.",
    )

"""What can go wrong at the emulated RunPod, by the names of contracts/runpod.md.

A number counts down: so many requests are hit. The rest holds until it is switched off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

Rights = Literal["none", "stop", "terminate"]


@dataclass
class Switches:
    """One account's faults.

    Attributes:
        no_capacity: (GPU or CPU id, data center) that cannot be placed; "*" for any.
        stock_lies: the catalogue shows stock all the same.
        insufficient_balance: create answers 402.
        spend_cap_as_capacity: the spend cap is reached, and create says "no instances".
        create_5xx_before_commit, create_5xx_after_commit: creates that fail, without or with
            a pod.
        drop_response: creates whose answer is lost after the commit.
        create_rule_400: creates refused by a rule.
        price_jump: what a new pod costs, times the list price.
        latency: seconds that every answer takes.
        list_lag_s: how late the listing shows what was created or ended.
        get_404_for_s: a new pod answers 404 for so long.
        partial_list: lists that miss every second pod.
        paged_list: pods a page; 0 for one page.
        delete_404_but_alive: deletes that answer 404 and do nothing.
        never_ready: new pods that are RUNNING and never get a port.
        image_pull_stuck: new pods that stay STARTING, without a word in their logs.
        image_pull_error: what the logs of new pods say, which stay STARTING as well.
        container_restarts: new pods whose container ends and is started again, for ever.
        ssh_refused_for: seconds for which a published port refuses connections.
        fewer_gpus: how many GPUs a new pod lacks.
        zero_gpu_on_start: a pod that is started again has no GPU.
        resume_500: starts that fail.
        port_changes_on_start: as it really is.
        balance_check_s: how often it is looked whether there is money left.
        eager_running: RUNNING at once, with nothing behind it, as it really is.
        exited_keeps_cost: an EXITED pod shows its running rate, as was recorded.
        html_502: requests that get the edge's page.
        key_revoked: the account's key is not valid any more.
        read_only: it may read only.
        myself_null: GraphQL knows nobody, as was seen for keys that it does not like.
        graphql_spot: GraphQL rents spot pods, as it did until 2026.
        interruption_lag_s: how late the API shows that a spot pod was taken away.
        status_word: every pod has this status.
        graphql_gone: GraphQL answers 410, as announced for early 2027.
        scoped_rights: what a pod's own key may do to its pod.
    """

    no_capacity: set[tuple[str, str]] = field(default_factory=set)
    stock_lies: bool = False
    insufficient_balance: bool = False
    spend_cap_as_capacity: bool = False
    create_5xx_before_commit: int = 0
    create_5xx_after_commit: int = 0
    drop_response: int = 0
    create_rule_400: int = 0
    price_jump: Decimal = Decimal(1)
    latency: float = 0
    list_lag_s: float = 0
    get_404_for_s: float = 0
    partial_list: int = 0
    paged_list: int = 0
    delete_404_but_alive: int = 0
    never_ready: int = 0
    image_pull_stuck: int = 0
    image_pull_error: str | None = None
    container_restarts: int = 0
    ssh_refused_for: float = 0
    fewer_gpus: int = 0
    zero_gpu_on_start: bool = False
    resume_500: int = 0
    port_changes_on_start: bool = True
    balance_check_s: float = 300
    eager_running: bool = True
    exited_keeps_cost: bool = True
    html_502: int = 0
    key_revoked: bool = False
    read_only: bool = False
    myself_null: bool = False
    graphql_spot: bool = False
    interruption_lag_s: float = 0
    status_word: str | None = None
    graphql_gone: bool = False
    scoped_rights: Rights = "stop"

    def hits(self, name: str) -> bool:
        """Whether a fault that counts down strikes now; counts it."""
        left = int(getattr(self, name))
        setattr(self, name, max(left - 1, 0))
        return left > 0

"""What can be set on the emulated Vast.ai: how it answers where sources differ, and its faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal


@dataclass
class Times:
    """Seconds between the steps of an instance's life, by the cloud's clock."""

    provision: float = 5  # actual_status null
    load: float = 30  # the image is pulled
    ports: float = 0  # `running` with ports null
    sshd: float = 3  # `running` before sshd accepts
    list_lag: float = 0  # a new instance shows up in listings and by id that much later
    reap_broke: float = 172800  # from no credit, or the end of its contract, to destroyed


@dataclass
class Switches:
    """Names as in the contract's emulator section."""

    # how it answers where sources differ
    bad_key_status: Literal[401, 404] = 404
    v0_list: Literal["ok", "410", "200"] = "410"
    search_cap: int | None = 64
    default_filters: bool = True
    offer_gone: Literal[404, 410, 400, 200] = 410
    second_delete: Literal[404, 200] = 404
    too_many: Literal["text", "detail", "error"] = "text"
    retry_after: str | None = None  # the header of a 429
    slash_308: bool = False  # a path without its slash is redirected
    pacing: float = 0  # times the documented thresholds; 0 does not limit
    stopped_as: Literal["exited", "stopped", "created"] = "exited"  # actual_status of stopped ones
    down_as: Literal["offline", "unknown"] = "offline"  # and of those whose host is gone
    bids_in_total: bool = False  # a search of type bid has the bid in dph_base and dph_total
    outbid_intended: Literal["stopped", "running"] = "stopped"
    auto_resume: bool = True  # an outbid instance starts again when its GPUs are free
    team_account: bool = False  # account ssh keys are refused
    restart_queued: bool = False  # a restart answers "state change queued"
    session_env: bool = False  # whether SSH sessions see the predefined variables
    filters_ignored: frozenset[str] = frozenset()  # columns that searches do not honour
    odd_rows: frozenset[str] = frozenset()  # columns that are null in offers and instances
    null_when_empty: bool = False  # an empty list is {"instances": null}
    charges_lag: float = 0  # seconds that charges are behind
    direct_works: bool = True
    proxy_works: bool = True
    pull_gb: float = 0  # of an image, billed as traffic
    stopped_storage: Decimal = Decimal(1)  # what a stopped one pays for its disk, times the usual

    # what goes wrong; numbers count down
    create_502_after_commit: int = 0
    create_timeout_after_commit: int = 0  # the answer never comes
    taken_at_create: int = 0  # the GPUs were taken since the search
    cancel_ignored: bool = False  # cancel_unavail is not honoured
    floor_rises: Decimal = Decimal(1)  # the lowest bid, times, since the search
    spend_rate_limit: bool = False  # a new account may not spend so much
    session_expired: bool = False  # a second factor has to be given again
    too_many_but_created: int = 0  # 429 on a create that took effect
    reply_price: Decimal | None = None  # the price of the next contracts is the listed one times it
    destroy_ignored: int = 0  # accepted, and nothing happens
    lag_hides_from_destroy: bool = False  # what listings do not show yet cannot be destroyed
    list_lies_empty: int = 0  # 200 with no instances
    list_short: int = 0  # fewer rows than it says there are
    get_lies_null: int = 0  # {"instances": null} for one that lives
    search_quota: bool = False  # the day's searches are used up
    stuck_in: str | None = None  # new instances stay in this actual_status
    start_fails: str | None = None  # status_msg of containers that cannot start
    sshd_never: bool = False
    silent_on_demand: bool = False  # a bid makes an on-demand instance
    times: Times = field(default_factory=Times)

    def counted(self, name: str) -> bool:
        """Whether a counted fault strikes now; counts it."""
        left = int(getattr(self, name))
        if left > 0:
            setattr(self, name, left - 1)
        return left > 0


SEARCH = r"/bundles/?$"

THRESHOLDS: tuple[tuple[str, str, int, float], ...] = (
    # method, path, calls, seconds
    ("PUT", r"/asks/[^/]+/?$", 1, 4.5),
    ("POST", r"/asks/bulk/?$", 1, 4.5),
    ("PUT", r"/launch_instance/?$", 1, 5),
    ("PUT", r"/instances/bid_price/", 1, 5.5),
    ("GET", r"/api/v1/instances/?$", 1, 1.0),
    ("GET", r"/api/v0/instances/\d+/?$", 1, 2.0),
    ("GET", r"/instances/balance/", 1, 3.0),
    ("PUT", r"/instances/\d+/?$", 1, 1.0),
    ("DELETE", r"/instances/\d+/?$", 1, 3.0),
    ("PUT", r"/instances/(reboot|recycle)/", 1, 1.0),
    ("POST", r"/instances/start/?$", 1, 2.0),
    ("PUT", r"/instances/prepay/", 1, 2.0),
    ("PUT", r"/instances/command/", 1, 1.5),
    ("DELETE", r"/instances/\d+/ssh/", 1, 2.0),
    ("POST", r"/api/v0/ssh/?$", 1, 1.0),
    ("PUT", r"/api/v0/ssh/", 1, 1.0),
    ("GET", r"/charges/?$", 1, 1.0),
    ("GET", r"/v1/invoices/?$", 1, 3.0),
    ("GET", r"/volumes/?$", 1, 5.5),
    ("PUT", r"/volumes/?$", 1, 5.5),
    ("POST", r"/volumes/search/?$", 1, 5.5),
    ("GET", r"/secrets/?$", 1, 5.0),
    ("POST", r"/secrets/?$", 1, 3.0),
    ("PUT", r"/secrets/?$", 1, 3.0),
    ("DELETE", r"/secrets/?$", 1, 3.0),
    ("GET", r"/auth/apikeys/?$", 1, 1.0),
    ("GET", r"/template/?$", 1, 3.0),
    ("GET", r"/subaccounts/?$", 1, 2.1),
    ("GET", r"/ipaddrs/?$", 1, 2.9),
    ("GET", r"/cloud_integrations/?$", 1, 2.9),
    ("GET", r"/endptjobs/?$", 1, 3.0),
    ("GET", r"/workergroups/?$", 1, 2.0),
    ("PUT", r"/commands/copy_direct/?$", 1, 3.5),
    ("DELETE", r"/commands/copy_direct/?$", 1, 3.5),
    ("POST", SEARCH, 10, 60.0),
)
"""How often each endpoint may be called with one key, as documented; searches: by one address."""

CREATE_PENALTY_SECONDS = 12.0

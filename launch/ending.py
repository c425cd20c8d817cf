"""How an error of one rank ends all of them, with one message and one exit code."""

from __future__ import annotations

from lorafusion.errors import LaunchError, LorafusionError, LostRankError
from lorafusion.launch.channel import Envelope
from lorafusion.launch.codes import EndedByRankZero, exit_code
from lorafusion.launch.post import StarPost

# A link often breaks a moment before it is known which rank was lost first.
FIRST_CAUSE_S = 1.0
# Rank 0 answers at once unless it computes.
ANSWER_S = 10.0


def listen_for_ends(post: StarPost) -> None:
    """What another rank says of its end becomes the post's problem here."""

    def failed(rank: int, envelope: Envelope) -> None:
        post.fail(_told(rank, post.grid.name(rank), envelope))

    def ended(_rank: int, envelope: Envelope) -> None:
        post.fail(EndedByRankZero(envelope["text"], envelope["code"]))

    post.on("failed" if post.rank == 0 else "end", failed if post.rank == 0 else ended)


def end_all(post: StarPost, error: BaseException) -> BaseException:
    """Tell the other ranks of ``error``; returns what this one is to end with."""
    if post.rank != 0:
        return _tell_rank_zero(post, error)
    if isinstance(error, LostRankError):
        error = post.wait_for_problem(FIRST_CAUSE_S) or error
    post.broadcast({"kind": "end", "text": describe(error), "code": exit_code(error)})
    return error


def describe(error: BaseException) -> str:
    """In words; with its type unless it is one of ours."""
    return str(error) if isinstance(error, LorafusionError) else f"{type(error).__name__}: {error}"


def _tell_rank_zero(post: StarPost, error: BaseException) -> BaseException:
    if error is not post.problem:
        kind = "lost" if isinstance(error, LostRankError) else "user"
        if not isinstance(error, LorafusionError):
            kind = "fault"
        post.send(0, {"kind": "failed", "text": describe(error), "what": kind})
        return post.wait_for_problem(ANSWER_S) or error
    return error


def _told(rank: int, name: str, envelope: Envelope) -> LorafusionError:
    text: str = envelope["text"]
    if envelope["what"] == "lost":  # the text names the rank
        return LostRankError(text)
    if envelope["what"] == "user":
        return LaunchError(f"{name}: {text}")
    return LostRankError(
        f"{name} has ended with {text}. The traceback is in its log, "
        f"logs/rank-{rank}.log in the run's folder."
    )

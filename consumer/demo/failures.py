"""What the sync promises about bookings that meet an obstacle: adopted, failed, healed, retried."""

from __future__ import annotations

from consumer.deadletters import Filter
from consumer.demo.stage import Stage
from consumer.demo.verdicts import Verdict, is_original, of_this_run, plural


def adopted(stage: Stage) -> Verdict:
    """The guide's "Sync fails with duplicate error": linked, and never changed."""
    bills = [bill for bill in stage.bills if bill.fate == "adopted"]
    versions = {row["identifier"]: row["version"] for row in stage.transactions()}
    same = [bill for bill in bills if bill.foreign is not None and versions.get(bill.number) == bill.foreign]
    linked = [bill for bill in bills if stage.sync_row(bill).get("adopted") is True]
    return Verdict(
        "The other hand's row is adopted, not changed",
        bool(bills) and same == bills == linked,
        f"{len(linked)} linked, {len(same)} never rewritten",
    )


def failed(stage: Stage) -> Verdict:
    """A record fault is `failed` with its retries unused, so that the guide's recovery query finds it."""
    said = [bill.failed_as for bill in stage.faulty]
    kinds = sorted({f"{status}, retry_count {count}" for status, count in filter(None, said)})
    return Verdict(
        "The guide's recovery query found the broken ones",
        bool(said) and said == [("failed", 0)] * len(said),
        f"{len(said)}, {'; '.join(kinds) or 'none found'}",
    )


def dead_letters(stage: Stage) -> Verdict:
    """Key and value of a dead letter are the source's bytes."""
    letters = of_this_run(stage, stage.tape.dead_letters())
    same = [letter for letter in letters if is_original(stage, letter)]
    found = {(letter.carried.invoice_id, letter.carried.error_code) for letter in same}
    return Verdict(
        "Their events are in the dead-letter topic, byte for byte",
        bool(stage.faulty) and found >= {(bill.invoice_id, bill.fault) for bill in stage.faulty},
        f"{plural(len(same), 'record')}, {sum(len(letter.record.value or b'') for letter in same)} bytes",
    )


def nothing_else(stage: Stage) -> Verdict:
    """Only what was told fails."""
    letters = of_this_run(stage, stage.tape.dead_letters())
    waiting = of_this_run(stage, stage.tape.retries())
    broken = {bill.invoice_id for bill in stage.faulty}
    late = {bill.invoice_id for bill in stage.bills if bill.waits_for}
    other_letters = [each for each in letters if each.carried.invoice_id not in broken]
    other_waiting = [each for each in waiting if each.carried.invoice_id not in late]
    return Verdict(
        "Nothing else in those topics",
        not other_letters and not other_waiting and len(letters) == len(broken),
        f"{plural(len(letters), 'dead letter')}, {plural(len(waiting), 'retry', 'retries')} of this run",
    )


def resolved(stage: Stage) -> Verdict:
    """A dead letter ends when its invoice is booked, by whichever path; a replay publishes it once."""
    entries = [
        entry for bill in stage.faulty for entry in stage.queue.entries(Filter("all", invoice_id=bill.invoice_id))
    ]
    states = [entry.state for entry in entries]
    replays = sum(entry.replays for entry in entries)
    return Verdict(
        "Mended, booked, and their dead letters resolved",
        bool(states) and states == ["resolved"] * len(stage.faulty) and replays == 1,
        f"{plural(states.count('resolved'), 'letter')}, {plural(replays, 'replay')}",
    )


def retried(stage: Stage) -> Verdict:
    """What may work later waits in a retry topic, and is booked then."""
    waiting = of_this_run(stage, stage.tape.retries())
    went = {(each.carried.invoice_id, each.carried.error_code) for each in waiting if is_original(stage, each)}
    wanted = [bill for bill in stage.bills if bill.waits_for]
    rows = stage.sync_rows()
    good = [
        bill
        for bill in wanted
        if (bill.invoice_id, bill.waits_for) in went
        and (row := rows.get(bill.invoice_id))
        and row["sync_status"] == "synced"
        and row["retry_count"] >= 1
    ]
    return Verdict(
        "Waited in a retry topic, then booked",
        bool(wanted) and good == wanted,
        ", ".join(str(bill.waits_for) for bill in good) or "none",
    )

"""``lorica audit``: how much does a site's real training leak? Lower bounds on ε, measured.

The claimed ε is an upper bound that a proof gives, for code that does what the proof says. The
audit attacks the code: it trains one site through the whole pipeline (round loop, messages,
ledger, sampling, clipping, noise) with canaries among its records, and asks how well what is
released tells which of them took part. Too well, and the claim is false (LOR-407).

Three attacks, from the strongest adversary to the most everyday one, each a training run:

- :mod:`~lorica.simulations.audit.gradient_canaries`: sees every noised sum. Three bounds, which
  assume less or prove more; their null hypotheses are spelled out there.
- :mod:`~lorica.simulations.audit.update_canaries`: sees the updates that leave the site.
- :mod:`~lorica.simulations.audit.membership`: has the final adapter and somebody's record.

The first two audit local DP-SGD steps, where canaries have a place in every noised sum: they run
the plan with training.mode "local" and rounds.warm_start 0, whatever it says itself. The third
attacks the adapter that the plan as it is makes. The audit's output says which was which.

All bounds together hold with the confidence asked for
(:data:`~lorica.simulations.audit.findings.ERROR_SHARES`).

What a lower bound cannot see, :mod:`~lorica.simulations.audit.checks` looks for: batches that are
not Poisson samples (shuffled ones do not show more of a canary; they void the proof, not the
attack), noise that is used again, and steps that the ledger was not charged for (each run leaks
what it may; there are too many). What neither sees: leaks outside the noised sums, such as
timings or logs, and noise that is predictable to one who knows its seed, which is why the
audit says which kind of noise it ran with.
"""

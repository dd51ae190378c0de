"""``lorica audit``: how much does a site's real training leak? Lower bounds on ε, measured.

The claimed ε is an upper bound that a proof gives, for code that does what the proof says. The
audit attacks the code: it trains one site through the whole pipeline (round loop, messages,
ledger, sampling, clipping, noise) with canaries among its records, and asks how well what is
released tells which of them took part. Too well, and the claim is false (LOR-407).

Attacks, from the strongest adversary to the most everyday one, each but the lies a training run:

- :mod:`~lorica.simulations.audit.attacks.release`: sees every release on frozen features (label
  sums, gradient sums of the head), which is all that a site sends under the default recipe. Three
  bounds, which assume less or prove more; their null hypotheses are spelled out in the next one.
- :mod:`~lorica.simulations.audit.attacks.sealed`: sees sums of these over several sites, of which
  all but h give no noise, as a coordinator with colluding sites does under privacy.trust "sum";
  :mod:`~lorica.simulations.audit.attacks.lying` is a coordinator that lies about who survived.
- :mod:`~lorica.simulations.audit.attacks.gradient`: sees every noised sum of local DP-SGD steps.
- :mod:`~lorica.simulations.audit.attacks.update`: sees the updates that leave the site.
- :mod:`~lorica.simulations.audit.attacks.membership`: has the final adapter and somebody's record.

The first two audit plans of training.mode "gradient" as they are, but for LoRA rounds, and put the
default rounds in place of mode "local". Canaries in gradients and in updates audit local DP-SGD
steps: they run the plan with training.mode "local" and rounds.warm_start 0, whatever it says
itself. The last attacks the adapter that the plan as it is makes. The audit's output says which was
which. No canary is placed in LoRA rounds of mode "gradient": their steps are the local steps' code
(:mod:`lorica.client.mechanism.dp_sgd`) at a σ and q of their own.

All bounds together hold with the confidence asked for
(:data:`~lorica.simulations.audit.evidence.findings.ERROR_SHARES`).

What a lower bound cannot see, :mod:`~lorica.simulations.audit.evidence.checks` looks for: batches
that are not Poisson samples (shuffled ones do not show more of a canary; they void the proof, not
the attack), noise that is used again, and steps that the ledger was not charged for (each run leaks
what it may; there are too many). What neither sees: leaks outside the noised sums, such as timings
or logs, and noise that is predictable to one who knows its seed, which is why the audit says which
kind of noise it ran with.
"""

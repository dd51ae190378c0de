"""What may be done to a noised gradient before it moves anything: smoothing, a proximal pull.

Formal guarantee:
    Both read the noised mean gradient, the current weights (which follow from earlier noised
    gradients) and the global adapter that the coordinator sent. They are post-processing of the
    Gaussian mechanism (:mod:`lorica.client.mechanism.dp_sgd`) and cost no privacy. Neither may move
    before the clipping: a proximal term inside a record's gradient would be clipped with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch


class AfterNoise:
    """Changes the gradients of a step in place, after noise and scaling; lives for one round.

    With g_t the noised mean gradient of a parameter in the t-th step that trains it:

    - smoothing ρ: m_t = ρ m_{t-1} + (1 − ρ) g_t, and m_t / (1 − ρᵗ) takes g_t's place: a
      first-order low-pass filter over steps, without a bias at the start. Of independent noise
      it leaves a share (1 − ρ)/(1 + ρ) of the variance, and it delays the signal by about
      ρ/(1 − ρ) steps;
    - proximal μ: μ (θ − θ_global) is added, the gradient of μ/2 ‖θ − θ_global‖², where
      θ_global is what the round started from. It is part of the mean loss, so μ is in units of
      the loss per squared weight.

    Sources: FedProx, Li et al. (arXiv 1812.06127, equation 2); smoothed noised gradients for
    LoRA, Liu et al. (arXiv 2602.19926), there with a Gaussian kernel.
    """

    def __init__(
        self,
        *,
        smoothing: float,
        proximal: float,
        origin: Mapping[torch.nn.Parameter, torch.Tensor],
    ) -> None:
        """
        Args:
            smoothing: ρ in [0, 1); 0 changes nothing.
            proximal: μ >= 0; 0 changes nothing.
            origin: θ_global of every parameter that has one; others are not pulled.
        """
        self._smoothing, self._proximal, self._origin = smoothing, proximal, origin
        self._means: dict[torch.nn.Parameter, torch.Tensor] = {}
        self._times: dict[torch.nn.Parameter, int] = {}

    def __call__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Change the gradients of the parameters that this step trains."""
        for parameter in parameters:
            assert parameter.grad is not None
            if self._smoothing:
                parameter.grad = self._smoothed(parameter, parameter.grad)
            if self._proximal and parameter in self._origin:
                away = parameter.detach() - self._origin[parameter]
                parameter.grad = parameter.grad + self._proximal * away

    def _smoothed(self, parameter: torch.nn.Parameter, gradient: torch.Tensor) -> torch.Tensor:
        share = self._smoothing
        mean = self._means.get(parameter, torch.zeros_like(gradient))
        mean = share * mean + (1 - share) * gradient
        self._means[parameter] = mean
        self._times[parameter] = self._times.get(parameter, 0) + 1
        return mean / (1 - share ** self._times[parameter])

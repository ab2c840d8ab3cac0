"""One cell alone: the background's own tint taken off, neighbours and what lies far off left out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cytomil.morphology.masks import REACH, Mask, find_nuclei

_BACKGROUND = 10  # per cent of the pixels, the lightest in green, which all stains darken
_MARGIN = 2 / 64  # of the side: so that the cell's edge stands before empty background


def isolate(density: npt.NDArray[np.float32], smooth: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Optical density of the cell in the middle over the background's, 0 away from it, (S ≥ 16, S, 3).

    ``smooth``: the same picture's, smoothed. The background is what the lightest tenth of the pixels show. Away is what
    lies beyond a cytoplasm's usual width from the nucleus, or nearer to another nucleus. It takes no threshold to part
    cytoplasm from background: where that is pale, a threshold finds red cells in its place.
    """
    green = smooth[..., 1]
    background = np.median(density[green <= np.percentile(green, _BACKGROUND)], axis=0)
    own: npt.NDArray[np.float32] = (density - background).clip(0) * _about(smooth[..., 0])[..., None]
    return own


def _about(red: npt.NDArray[np.floating]) -> Mask:
    from scipy import ndimage as ndi

    nuclei = find_nuclei(red)
    near = ndi.distance_transform_edt(~nuclei.hull) < (REACH + _MARGIN) * len(red)
    if nuclei.others.any():
        apart = ndi.distance_transform_edt(~nuclei.own)
        near &= apart < ndi.distance_transform_edt(~nuclei.others)
    return near | nuclei.own

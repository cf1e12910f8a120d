"""The older names of terra.amp for this device."""

from ...amp._older import of_device

autocast, GradScaler = of_device("cpu")

"""The older names of terra.amp for a device that is not there: they do nothing."""

from ...amp._older import of_device

autocast, GradScaler = of_device("cuda")

"""Ways to a device, and what is measured there: this host, an emulated ARM machine, a board by ssh, a phone by adb."""

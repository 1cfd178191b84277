"""Events of applications: read, decoded, judged, set aside if they are bad."""

"""Which impressions the teacher scores, and with which snapshot."""

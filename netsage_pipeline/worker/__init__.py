"""A chain that runs for ever: the loop, its ledger, and a relay where there is nothing to do on the way."""

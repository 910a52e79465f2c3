"""Commands of careless users over every script of recipes/, each of which must end in one clear sentence."""

"""Audits of signals: does one look ahead, from which bar on and how? It is run on the past and on other futures."""

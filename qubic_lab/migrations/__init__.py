"""How the database's tables came about, one step a file; `qubic_lab.database` takes the steps that are missing."""

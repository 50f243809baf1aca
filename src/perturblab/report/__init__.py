"""What reports are made of: statistics over seeds, tables, pictures. Imports no torch and no study."""

"""The command line. One module for each noun; `render` decides how anything looks. Modules import what is heavy only
inside their functions, so that a light command stays quick."""

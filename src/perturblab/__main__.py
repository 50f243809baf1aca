from perturblab.cli import main

main()
